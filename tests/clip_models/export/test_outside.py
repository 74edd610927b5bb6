"""An export format from outside the package, named as module:class."""

import json

import pytest
import torch

import clip_models
from clip_core import ClipError
from clip_models import cli

HERE = "tests.clip_models.export.outside"


def test_a_format_from_outside_is_written_and_checked(tmp_path, capsys):
    model = clip_models.create_model("ViT-Ti-4-24", seed=2).eval()
    clip_models.save_model(tmp_path / "tiny.safetensors", model, model.spec)
    args = ["--model", "ViT-Ti-4-24", "--pretrained", str(tmp_path / "tiny.safetensors"), "--to", f"{HERE}:OneFile"]
    with pytest.raises(SystemExit, match="0"):
        cli.main(["export", *args, "--output", str(tmp_path / "out"), "--pairs", "8"])
    assert "clip-models on 8 pairs: largest difference of a cosine 0.0e+00" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/export.json").read_text())["format"] == f"{HERE}:OneFile"
    again, _ = clip_models.load_model(tmp_path / "out/weights.safetensors")
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_a_format_from_outside_that_is_wrong_leaves_nothing(tmp_path):
    from clip_models.export.exporting import export_model

    model = clip_models.create_model("ViT-Ti-4-24", seed=2)
    with pytest.raises(ClipError, match="differ"):
        export_model(model, f"{HERE}:Mirrored", tmp_path / "out", pairs=4)
    assert list(tmp_path.iterdir()) == []
