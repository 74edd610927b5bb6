"""Named architectures at full size, whole models, against OpenCLIP's: towers that are not a native ViT."""

import pytest
import torch

from clip_models.model import build_model
from clip_models.specs import get_model_spec
from clip_models.towers.common import NoRandomInit

open_clip = pytest.importorskip("open_clip")
pytestmark = pytest.mark.parity


@pytest.mark.parametrize("name", ["RN50", "convnext_base_w", "ViT-B-16-SigLIP", "EVA02-B-16"])
def test_features_and_logits(name):
    torch.manual_seed(0)
    spec = get_model_spec(name)
    ours = build_model(spec)
    with torch.no_grad():
        for parameter in ours.visual.parameters():
            if not parameter.any():  # blocks that start as the identity would hide what they compute
                parameter.normal_(std=0.3)
    with NoRandomInit():
        reference = open_clip.create_model(name, load_weights=False)
    reference.load_state_dict(ours.state_dict(), strict=True)
    size = spec.vision.image_size
    image = torch.randn(2, 3, size, size)
    text = torch.randint(1, spec.text.vocab_size - 1, (2, spec.text.context_length))
    text[:, -1] = spec.text.vocab_size - 1
    for train in (False, True):
        ours.train(train)
        reference.train(train)
        with torch.no_grad():
            outputs = []
            for model in (ours, reference):
                torch.manual_seed(1)  # stochastic depth draws the same
                outputs.append(model(image, text))
        logits = [output[2] * output[0] @ output[1].T for output in outputs]
        for mine, theirs in zip((*outputs[0], logits[0]), (*outputs[1], logits[1]), strict=True):
            assert (mine - theirs).abs().max() < 1e-5
