"""Random weights from a seed: each tensor from its own name, in the distribution of the tower, from the meta device."""

import copy
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from clip_models import ClipModelsError, ResNetConfig, TimmConfig, create_model, get_model_spec
from clip_models.model import build_model
from clip_models.model.drawing import Drawing, _Calls, draw_model, named_tensors
from tests.support import coca
from tests.support.towers import BERT, TRUNK, MeanColor, MeanColorConfig

VIT = get_model_spec("ViT-Ti-4-24")
HIERA = TimmConfig(image_size=224, model_name="hiera_tiny_224", pool="", proj="linear")
LARGER = replace(VIT.preprocess, size=(32, 32))
SPECS = {
    "vit": VIT,
    "coca": coca.TINY,
    "resnet": replace(
        VIT, vision=ResNetConfig(image_size=32, layers=(1, 1, 1, 1), width=16, head_width=32), preprocess=LARGER
    ),
    "timm": replace(VIT, vision=TRUNK, preprocess=LARGER),
    "convnext": replace(
        VIT, vision=TimmConfig(image_size=32, model_name="test_convnext", pool="avg", proj="linear"), preprocess=LARGER
    ),
    # A trunk of timm that leaves its initialisation out on the meta device, and reads numbers while it draws them.
    "hiera": replace(VIT, vision=HIERA, preprocess=replace(VIT.preprocess, size=(224, 224))),
    "hf": replace(VIT, text=BERT, custom_text=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SPECS)
def test_the_distributions_are_those_of_the_towers(kind):
    spec = SPECS[kind]
    torch.manual_seed(0)
    plain, drawn = (dict(named_tensors(model)) for model in (build_model(spec), draw_model(spec, 3)))
    assert drawn.keys() == plain.keys()
    for name, wanted in plain.items():
        found = drawn[name]
        assert (found.dtype, found.shape, found.requires_grad) == (wanted.dtype, wanted.shape, wanted.requires_grad)
        if not wanted.is_floating_point() or wanted.numel() == 1 or wanted.std() == 0:
            assert torch.equal(found, wanted), name
        elif wanted.numel() > 2000:
            assert found.std().item() == pytest.approx(wanted.std().item(), rel=0.15), name
            assert abs(found.mean() - wanted.mean()) < 0.15 * wanted.std(), name


@pytest.mark.parametrize("kind", SPECS)
def test_one_tensor_alone_is_that_of_the_model_and_no_generator_changes(kind):
    model, state = draw_model(SPECS[kind], 3), torch.get_rng_state()
    drawing = Drawing(SPECS[kind], 3)
    for name, tensor in reversed(list(named_tensors(model))):
        assert torch.equal(drawing.value(name), tensor), name
    assert torch.equal(torch.get_rng_state(), state)


class Reader(MeanColor):
    def __init__(self, config, embed_dim: int, quick_gelu: bool = False) -> None:
        super().__init__(config, embed_dim, quick_gelu)
        self.largest = float(self.linear.weight.detach().max())


class ReaderConfig(MeanColorConfig):
    TOWER = f"{__name__}:Reader"


class Cloner(MeanColor):
    def __init__(self, config, embed_dim: int, quick_gelu: bool = False) -> None:
        super().__init__(config, embed_dim, quick_gelu)
        self.stack = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(64, 2, 128), 2)  # of copies


class ClonerConfig(MeanColorConfig):
    TOWER = f"{__name__}:Cloner"


READS = {
    "numpy": lambda x: x.numpy().sum(),
    "array": lambda x: np.asarray(x).sum(),
    "tolist": lambda x: x.tolist(),
    "item": lambda x: x.sum().item(),
    "condition": lambda x: bool((x > 0).any()),
    "copy": copy.deepcopy,
    "in place": lambda x: torch._foreach_mul_([x], 2.0),
}


@pytest.mark.parametrize("read", READS)
def test_what_reads_numbers_that_are_not_drawn_is_refused(read):
    calls = _Calls()
    with torch.no_grad(), calls.recording():
        x = torch.empty(3).normal_()
        with pytest.raises(ClipModelsError, match="while it is built"):
            READS[read](x)


def test_copies_of_a_layer_are_drawn():
    model = draw_model(replace(VIT, vision=ClonerConfig(image_size=24)), 3)
    bound = 64**-0.5
    for layer in model.visual.stack.layers:
        assert layer.linear1.weight.abs().max() <= bound
        assert layer.linear1.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_a_tower_that_reads_its_random_numbers_is_drawn_in_order():
    spec, state = replace(VIT, vision=ReaderConfig(image_size=24)), torch.get_rng_state()
    with pytest.raises(ClipModelsError, match="reads its random numbers while it is built"):
        Drawing(spec, 3)
    model = draw_model(spec, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.visual.largest == model.visual.linear.weight.max() > 0
    with torch.random.fork_rng():
        torch.manual_seed(3)
        assert torch.equal(build_model(spec).visual.linear.weight, model.visual.linear.weight)


@pytest.mark.slow
def test_a_model_of_5_billion_parameters_is_laid_out_in_little_memory():
    result = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True)
    parameters, mib, spread = map(float, result.stdout.split())
    assert parameters > 5e9
    assert mib < 1500  # 20 GB as float32
    assert spread == pytest.approx(0.02, rel=0.01)


LARGE = """
from pathlib import Path
from clip_models import get_model_spec
from clip_models.model.drawing import Drawing, named_tensors
drawing = Drawing(get_model_spec("EVA02-E-14-plus"), 0)
block = drawing.value("visual.trunk.blocks.3.mlp.fc1.weight")
print(sum(tensor.numel() for tensor in drawing.shapes.values()))
[peak] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(int(peak.split()[1]) / 1024)
print(float(block.std()))
"""


def test_equal_shapes_of_other_names_are_other_numbers():
    tensors = {name: tensor for name, tensor in named_tensors(create_model("ViT-Ti-4-24", seed=0)) if tensor.ndim == 2}
    other = dict(named_tensors(create_model("ViT-Ti-4-24", seed=1)))
    same = dict(named_tensors(create_model("ViT-Ti-4-24", seed=0)))
    seen: list[torch.Tensor] = []
    for name, tensor in tensors.items():
        assert torch.equal(tensor, same[name])
        assert not torch.equal(tensor, other[name]), name
        assert not any(each.shape == tensor.shape and torch.equal(each, tensor) for each in seen), name
        seen.append(tensor)


def test_a_tensor_keeps_its_numbers_when_the_model_gets_more_layers():
    deeper = replace(VIT, text=replace(VIT.text, layers=VIT.text.layers + 1))
    few, more = draw_model(VIT, 0), dict(named_tensors(draw_model(deeper, 0)))
    assert all(torch.equal(tensor, more[name]) for name, tensor in named_tensors(few) if name.startswith("visual."))


def test_a_default_device_does_not_matter():
    with torch.device("meta"):
        model = create_model("ViT-Ti-4-24", seed=0)
    wanted = create_model("ViT-Ti-4-24", seed=0).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())
