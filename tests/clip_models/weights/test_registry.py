import hashlib

import pytest

from clip_models import ClipModelsError, list_models
from clip_models.weights import registry
from clip_models.weights.registry import find_tag, get_pretrained_tag, identify

ROWS = registry.list_pretrained()


def test_the_table_has_every_image_text_row_of_openclip_but_four():
    """OpenCLIP's development line has 200. Absent are ViT-B-16-SigLIP2-naflex and ViT-SO400M-16-SigLIP2-naflex, whose
    towers take variable resolution, and the two CLAP rows, which are for audio."""
    assert len(ROWS) == len(set(ROWS)) == 200 - 4
    assert sum(not model.endswith("-quickgelu") for model, _ in ROWS) == 173 - 4
    assert {model for model, _ in ROWS} <= set(list_models())
    assert registry.list_pretrained(as_str=True)[0] == "RN50:openai"


def test_tags_are_read_in_any_case_and_models_with_a_slash():
    assert find_tag("ViT-B/32", "LAION2B-s34B-b79K") is find_tag("ViT-B-32", "laion2b_s34b_b79k") is not None
    assert registry.is_pretrained_cfg("ViT-B-32", "OpenAI")
    assert not registry.is_pretrained_cfg("ViT-B-32", "webli")
    assert registry.get_pretrained_cfg("ViT-B-32", "webli") == {}
    assert registry.get_pretrained_url("ViT-B-32", "webli") == ""
    assert "webli" in registry.list_pretrained_tags_by_model("ViT-B-16-SigLIP")
    assert registry.list_pretrained_tags_by_model("ViT-B-99") == []
    assert registry.list_pretrained_models_by_tag("LAION400M-E31") == [
        "ViT-B-32", "ViT-B-16", "ViT-B-16-plus-240", "ViT-L-14", "ViT-B-32-quickgelu",
    ]  # fmt: skip


def test_the_address_tells_the_hash():
    for model, tag in ROWS:
        row = find_tag(model, tag)
        expected = 64 if "openaipublic" in row.url else 8 if "github.com" in row.url else 0
        assert len(row.sha256) == expected
        assert set(row.sha256) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    ("model", "tag", "hint"),
    [
        ("ViT-B-32", "laion2b_s34b_b97k", "did you mean laion2b_s34b_b79k"),
        ("ViT-B-32", "webli", "architectures that have it: ViT-B-16-SigLIP, "),
        ("ViT-B-32-quickgelu", "laion2b_e16", "architectures that have it: ViT-B-32$"),
        ("EVA02-B-16", "openai_v3", "its tags are merged2b_s8b_b131k"),
        ("ViT-S-32", "nothing", "it has no pretrained tags; name a file"),
        ("ViT-B-23", "openai", "unknown model 'ViT-B-23'; did you mean ViT-B-32"),
    ],
)
def test_a_tag_that_is_not_there_says_what_is(model, tag, hint):
    with pytest.raises(ClipModelsError, match=hint):
        get_pretrained_tag(model, tag)


def test_a_file_is_recognised_by_the_hubs_folder_or_by_its_name_and_hash(tmp_path, monkeypatch):
    folder = tmp_path / "models--laion--CLIP-ViT-L-14-laion2B-s32B-b82K" / "snapshots" / "abc"
    assert identify(folder / "open_clip_model.safetensors").tag == "laion2b_s32b_b82k"
    assert identify(tmp_path / "epoch_5.pt") is None
    assert identify(tmp_path / "b32_400m.pt").tag == "metaclip_400m"
    (tmp_path / "ViT-B-32.pt").write_bytes(b"trained by somebody else under the same name")
    assert identify(tmp_path / "ViT-B-32.pt") is None
    real = find_tag("ViT-B-32", "openai").sha256
    monkeypatch.setattr("clip_models.weights.registry.sha256_of", lambda path: real)
    assert identify(tmp_path / "ViT-B-32.pt").quick_gelu


def test_the_hash_function_is_sha256(tmp_path):
    from clip_core.files import sha256_of

    (tmp_path / "x").write_bytes(b"abc" * 1000)
    assert sha256_of(tmp_path / "x") == hashlib.sha256(b"abc" * 1000).hexdigest()
