"""Folders for transformers and for OpenCLIP, made by the command and by the function."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer, CLIPModel

import clip_models
from clip_models import cli
from clip_models.export.exporting import export_model
from tests.support.tokenizers import CAPTIONS, make_byte_bpe, make_tiktoken


@pytest.fixture(scope="module")
def model():
    return clip_models.create_model("ViT-Ti-4-24", seed=2).eval()


def test_transformers_reads_model_and_tokenizer(model, tmp_path):
    check = export_model(model, "hf", tmp_path / "out", pairs=20)
    assert check.max_cosine_difference < 1e-6
    theirs = CLIPModel.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    inputs = tokenizer(["a red cat", "dogs"], padding="max_length", return_tensors="pt")
    image = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        out = theirs(pixel_values=image, **inputs)
        ids = clip_models.get_tokenizer(model.spec)(["a red cat", "dogs"])
        image_features, text_features, _ = model(image, ids)
    torch.testing.assert_close(out.image_embeds, image_features, rtol=0, atol=1e-5)
    torch.testing.assert_close(out.text_embeds, text_features, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_command_writes_what_local_dir_reads(model, tmp_path, capsys):
    clip_models.save_model(tmp_path / "tiny.safetensors", model, model.spec)
    args = ["--model", "ViT-Ti-4-24", "--pretrained", str(tmp_path / "tiny.safetensors"), "--to", "open-clip"]
    with pytest.raises(SystemExit, match="0"):
        cli.main(["export", *args, "--output", str(tmp_path / "out"), "--pairs", "10"])
    assert "on 10 pairs: largest difference of a cosine 0.0e+00" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "export.json").read_text())["self_check"]["pairs"] == 10
    again = clip_models.create_model(f"local-dir:{tmp_path / 'out'}")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_the_command_refuses_random_weights(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["export", "--model", "ViT-Ti-4-24", "--output", str(tmp_path / "out")])
    assert capsys.readouterr().err.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["hf", "tiktoken"])
def test_a_folder_brings_its_tokenizer_along(tmp_path, kind):
    plain = clip_models.get_model_spec("ViT-Ti-4-24")
    size = {"context_length": 16, "width": 64, "heads": 2, "layers": 1, "vocab_size": 500, "eos_id": 300, "pad_id": 301}
    made_with, text = make_tiktoken(tmp_path / "mini.tiktoken"), clip_models.ModernTextConfig(**size)
    if kind == "hf":
        made_with, text = make_byte_bpe(tmp_path / "bpe"), replace(text, eos_id=2, pad_id=1)
    tokenizer = clip_models.TokenizerConfig(kind=kind, name=str(made_with))
    spec = replace(plain, name="own", custom_text=True, text=text, tokenizer=tokenizer)
    expected = clip_models.get_tokenizer(spec)(CAPTIONS)
    export_model(clip_models.create_model(spec, seed=0), "open-clip", tmp_path / "out", pairs=2)
    made_with.rename(tmp_path / "gone")
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    again = clip_models.create_model(f"local-dir:{moved}")
    for source in (again.spec, f"local-dir:{moved}"):
        assert torch.equal(clip_models.get_tokenizer(source)(CAPTIONS), expected)
