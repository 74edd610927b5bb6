"""Every architecture, on the meta device: names and shapes of its tensors are OpenCLIP's.

Live against the published package, and against numbers of its development line, which knows architectures that the
package does not.
"""

import functools
import gzip
import json
from pathlib import Path

import pytest
import torch

from clip_models.model import build_model
from clip_models.specs import HFTextConfig, get_model_spec, list_models
from tests.support.meta import Shapes, difference, meta_device, shapes_of

open_clip = pytest.importorskip("open_clip")
pytest.importorskip("timm")
pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "openclip_shapes.json.gz"
# Architectures that are built elsewhere: variable resolution, audio, generation of text.
ELSEWHERE = ("naflex", "clap")
OURS = ["ViT-Ti-4-24"]
# Of the development line; the golden file cannot hold the second, whose text tower it would have to download.
NOT_PUBLISHED = ["gte-modernbert-base-ViT-B-32-256", "moderntext-ViT-B-32-256"]


@functools.cache
def build(name: str) -> tuple[Shapes, list[str]]:
    with meta_device():
        return shapes_of(build_model(get_model_spec(name)))


@functools.cache
def golden() -> dict[str, Shapes]:
    if not GOLDEN.is_file():
        pytest.skip(f"{GOLDEN.name} is not beside this checkout")
    with gzip.open(GOLDEN, "rt") as file:
        return json.load(file)


def reference(name: str, folder: Path) -> torch.nn.Module:
    """OpenCLIP's model; a Hugging Face text tower is built from a config.json in `folder`, without a download."""
    overrides = {}
    text = get_model_spec(name).text
    if isinstance(text, HFTextConfig):
        (folder / "config.json").write_text(json.dumps(text.config))
        text_cfg = {**open_clip.get_model_config(name)["text_cfg"], "hf_model_name": str(folder)}
        overrides["text_cfg"] = {**text_cfg, "hf_model_pretrained": False}
    return open_clip.create_model(name, load_weights=False, pretrained_text=False, device="meta", **overrides)


def test_the_table_is_openclips_list():
    assert set(list_models()) == {*open_clip.list_models(), *NOT_PUBLISHED, *OURS}


@pytest.mark.parametrize("name", open_clip.list_models())
def test_names_and_shapes_are_those_of_the_published_package(name, tmp_path):
    with meta_device():
        shapes, parameters = shapes_of(reference(name, tmp_path))
    ours, our_parameters = build(name)
    assert difference(ours, shapes) == ""
    assert our_parameters == parameters


def test_the_development_line_has_no_other_fixed_resolution_architectures():
    theirs = {name for name in golden() if not any(word in name.lower() for word in ELSEWHERE)}
    assert theirs <= set(list_models())
    assert len(theirs) > 130


@pytest.mark.parametrize("name", list_models())
def test_names_and_shapes_are_those_of_the_development_line(name):
    if name not in golden():
        # OpenCLIP cannot build these without a download.
        assert isinstance(get_model_spec(name).text, HFTextConfig) or name in OURS
        return
    assert difference(build(name)[0], golden()[name]) == ""
