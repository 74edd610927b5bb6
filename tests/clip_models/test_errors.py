from pathlib import Path

import pytest

from clip_models import ClipModelsError, create_model, save_model
from clip_models.embedding.config import EmbedConfig
from clip_models.embedding.run import run_embed
from clip_models.errors import local_path
from clip_models.export.exporting import export_model


@pytest.mark.parametrize("url", ["s3://bucket/out.safetensors", "s3:/out.safetensors", "gs://b/o.safetensors"])
def test_an_output_that_is_a_url_is_refused_and_never_becomes_a_local_folder(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = create_model("ViT-Ti-4-24", seed=0)
    for write in (
        lambda: save_model(url, model, model.spec),
        lambda: export_model(model, "onnx", url),
        lambda: run_embed(["a cat"], url, model, None, EmbedConfig(), False),
    ):
        with pytest.raises(ClipModelsError, match="is a URL: give a path"):
            write()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_path_is_not_the_current_folder():
    with pytest.raises(ClipModelsError, match="output is empty; give it a path"):
        local_path("", "output")


@pytest.mark.parametrize("path", ["out", "/tmp/out", "a:b", "C:/out", "./s3:/out", Path("x/y.safetensors")])
def test_paths_are_paths(path):
    assert local_path(path, "output") == Path(path)
