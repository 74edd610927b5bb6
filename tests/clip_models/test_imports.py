"""What an import costs, each in a fresh interpreter."""

import subprocess
import sys

import pytest

import clip_models


def modules_after(code: str) -> set[str]:
    script = f"{code}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.split("\n")[-2].split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import clip_models; clip_models.list_models()", {"torch", "PIL", "numpy", "ftfy", "safetensors"}),
        (
            "import clip_models, pickle\n"
            "t = clip_models.get_tokenizer('ViT-B-32')\n"
            "pickle.loads(pickle.dumps(t.encode_numpy))(['a cat', 'na\\u00efve &amp; more'])\n"
            "t.count_truncated(['a'])\n",
            {"torch", "PIL", "safetensors"},
        ),
        (
            "import clip_models.weights.hub; clip_models.weights.registry.list_pretrained()",
            {"torch", "PIL", "numpy", "fsspec", "huggingface_hub", "tqdm"},
        ),
        ("import clip_models; clip_models.create_model('ViT-Ti-4-24')", {"torchvision", "timm", "ray", "ftfy"}),
    ],
    ids=["specs", "tokenizer", "pretrained", "model"],
)
def test_heavy_modules_stay_out(code, absent):
    loaded = modules_after(code)
    assert "clip_models" in loaded
    assert loaded & absent == set()


def test_every_public_name_resolves():
    for name in clip_models.__all__:
        value = getattr(clip_models, name)
        assert name.isupper() or value.__name__ == name
    assert set(clip_models.__all__) <= set(dir(clip_models))
    with pytest.raises(AttributeError, match="No clip_models attribute create_modle"):
        _ = clip_models.create_modle
