"""Initial weights against the numbers that OpenCLIP's initialisation prescribes."""

import math
import threading

import pytest
import torch
from torch import nn

from clip_models.towers.common import NoRandomInit

TEXT, LAYERS, VISION, PATCH = 64, 2, 96, 4  # widths, text layers and patch size of the tiny model


def normal(std):
    return ("normal", std)


def uniform(bound):
    return ("uniform", bound)


@pytest.mark.parametrize(
    ("suffix", "law"),
    [
        ("token_embedding.weight", normal(0.02)),
        ("positional_embedding", normal(0.01)),
        ("text_projection", normal(TEXT**-0.5)),
        ("transformer.resblocks.0.attn.in_proj_weight", normal(TEXT**-0.5)),
        ("transformer.resblocks.1.attn.out_proj.weight", normal(TEXT**-0.5 * (2 * LAYERS) ** -0.5)),
        ("transformer.resblocks.1.mlp.c_fc.weight", normal((2 * TEXT) ** -0.5)),
        ("transformer.resblocks.1.mlp.c_proj.weight", normal(TEXT**-0.5 * (2 * LAYERS) ** -0.5)),
        ("visual.positional_embedding", normal(VISION**-0.5)),
        ("visual.proj", normal(VISION**-0.5)),
        ("visual.conv1.weight", uniform((3 * PATCH * PATCH) ** -0.5)),
        ("visual.transformer.resblocks.3.attn.in_proj_weight", uniform(math.sqrt(6 / (4 * VISION)))),
        ("visual.transformer.resblocks.0.attn.out_proj.weight", uniform(VISION**-0.5)),
        ("visual.transformer.resblocks.0.mlp.c_fc.weight", uniform(VISION**-0.5)),
        ("visual.transformer.resblocks.0.mlp.c_proj.weight", uniform((4 * VISION) ** -0.5)),
    ],
)
def test_distribution(tiny, suffix, law):
    weight = tiny.state_dict()[suffix]
    kind, size = law
    std = size if kind == "normal" else size / math.sqrt(3)
    tolerance = 4 * std / math.sqrt(weight.numel())
    assert abs(weight.mean().item()) < tolerance
    assert abs(weight.std().item() - std) < tolerance
    furthest = weight.abs().max().item()
    assert furthest <= size if kind == "uniform" else furthest > 2.5 * size


def test_constants(tiny):
    state = tiny.state_dict()
    assert state["logit_scale"].item() == pytest.approx(math.log(1 / 0.07))
    for name, value in state.items():
        if name.endswith(("in_proj_bias", "out_proj.bias")) or (".ln_" in f".{name}" and name.endswith("bias")):
            assert not value.any(), name
        elif ".ln_" in f".{name}":
            assert (value == torch.ones_like(value)).all(), name


def test_skipped_initialisation_ends_on_any_memory_and_is_that_of_its_thread_alone():
    filled = torch.full((64,), 9.0)  # out of the range of a truncated normal, which is drawn again until it is in it
    inside, outside = threading.Event(), threading.Event()

    def skip():
        with NoRandomInit():
            inside.set()
            outside.wait(10)

    thread = threading.Thread(target=skip)
    thread.start()
    assert inside.wait(10)
    with NoRandomInit():
        nn.init.trunc_normal_(filled)
        outside.set()
        thread.join()
    assert torch.equal(filled, torch.full((64,), 9.0))
    nn.init.trunc_normal_(filled)
    assert filled.abs().max() <= 2
