"""A model with merged adapters, loaded by OpenCLIP."""

import pytest
import torch

from clip_models import save_open_clip
from clip_train.lora import LoraConfig
from tests.clip_train.test_lora import VIT, adapted_model, inputs, plain_model

open_clip = pytest.importorskip("open_clip")
pytestmark = pytest.mark.parity


@torch.no_grad()
def test_openclip_computes_the_features_of_the_adapted_model(tmp_path):
    config = LoraConfig(rank=3, targets="all")
    model = adapted_model(VIT, config).eval()
    save_open_clip(tmp_path, plain_model(model, config))
    theirs = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    image, text = inputs(VIT)
    for ours, other in (
        (model.encode_image(image), theirs.encode_image(image)),
        (model.encode_text(text), theirs.encode_text(text)),
    ):
        assert (ours - other).norm() / other.norm() < 1e-5
