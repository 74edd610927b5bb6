"""The products of linear layers: their values with oneDNN, which library a run takes, and when bf16 is computed."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from clip_models import create_model
from clip_models.towers.products import Linear, linear
from clip_train import ClipTrainError, FitConfig, ModelConfig, TrainConfig
from clip_train import matmul as module
from clip_train.config import resolve
from clip_train.losses import products
from clip_train.matmul import computed_precision, multiplier, onednn
from clip_train.parallel import World
from clip_train.tasks.contrastive import ContrastiveConfig

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch has no oneDNN here")
HERE = World(0, 1, torch.device("cpu"))
FP32 = TrainConfig(precision="fp32")


class Operators(TorchDispatchMode):
    """Collects the names of the operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func._opname)
        return func(*args, **(kwargs or {}))


def relative_error(found, wanted):
    return float((found.detach().double() - wanted.detach()).norm() / wanted.detach().norm())


@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_float64(shape, bias):
    torch.manual_seed(0)
    leaves = [torch.randn(*shape), torch.randn(4, 7), *([torch.randn(4)] if bias else [])]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    wanted = F.linear(*exact)
    grad = torch.randn(4, dtype=torch.float64).expand_as(wanted)  # strides of 0, as behind a mean
    with onednn():
        found = linear(*leaves)
    gradients = torch.autograd.grad(found, leaves, grad.float().expand_as(found))
    assert relative_error(found, wanted) < 1e-6
    for mine, true in zip(gradients, torch.autograd.grad(wanted, exact, grad), strict=True):
        assert relative_error(mine, true) < 1e-6


@pytest.mark.parametrize("library", [nullcontext, onednn])
def test_a_layer_is_computed_by_onednn_alone_forward_and_backward(library):
    layer, x = Linear(8, 4), torch.randn(3, 8, requires_grad=True)
    with library(), Operators() as seen:
        layer(x).sum().backward()
    products = {"addmm", "mm", "_linear_pointwise"} & seen.names
    assert products == ({"_linear_pointwise"} if library is onednn else {"addmm", "mm"})


def test_frozen_weights_get_no_gradient():
    layer, x = Linear(8, 4).requires_grad_(False), torch.randn(3, 8, requires_grad=True)
    with onednn():
        layer(x).sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(x.grad, layer.weight.sum(dim=0).expand(3, 8))


def test_activations_that_are_computed_again_are_the_same():
    model = create_model("ViT-Ti-4-24", seed=0)
    image = torch.randn(2, 3, *model.spec.preprocess.size)
    gradients = []
    for again in (False, True):
        model.set_grad_checkpointing(again)
        model.zero_grad()
        with onednn(), Operators() as seen:
            model.encode_image(image).square().sum().backward()
        assert "addmm" not in seen.names
        gradients.append([p.grad for p in model.visual.parameters()])
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("case", ["autocast", "float64", "empty"])
def test_other_products_are_left_to_torch(case):
    layer, x = Linear(8, 4), torch.randn(0 if case == "empty" else 3, 8)
    if case == "float64":
        layer, x = layer.double(), x.double()
    with onednn(), torch.autocast("cpu", enabled=case == "autocast"):
        y = layer(x)
    assert y.dtype == {"autocast": torch.bfloat16, "float64": torch.float64, "empty": torch.float32}[case]
    assert y.shape == (len(x), 4)


@pytest.fixture(scope="module")
def model():
    return create_model("ViT-Ti-4-24")


ZEN_5 = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2\n"


@pytest.mark.parametrize(
    ("info", "faster"),
    [
        (ZEN_5, True),
        (ZEN_5.replace("26", "25"), False),
        (ZEN_5.replace("26", "27"), True),
        (ZEN_5.replace("AuthenticAMD", "GenuineIntel"), False),
        ("CPU architecture: 8\n", False),
    ],
)
def test_the_kind_of_the_cpu_decides(model, monkeypatch, info, faster):
    monkeypatch.setattr(module, "Path", lambda name: SimpleNamespace(exists=lambda: True, read_text=lambda **_: info))
    metrics = {}
    assert (multiplier(FP32, model, HERE, metrics) is onednn) == faster
    assert multiplier(replace(FP32, matmul="torch"), model, HERE, metrics) is nullcontext
    assert multiplier(replace(FP32, precision="bf16"), model, HERE, metrics) is nullcontext
    assert multiplier(replace(FP32, compile="block"), model, HERE, metrics) is nullcontext
    assert metrics == {}


@pytest.mark.parametrize("native", [True, False])
def test_bf16_is_computed_in_fp32_where_the_cpu_has_to_emulate_it(monkeypatch, native):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    assert computed_precision("bf16", HERE) == ("bf16" if native else "fp32")
    assert computed_precision("bf16", World(0, 1, torch.device("cuda"))) == "bf16"
    assert computed_precision("pure_bf16", HERE) == "pure_bf16"


@pytest.mark.parametrize(
    ("matmul", "options", "message"),
    [
        ("onednn", {"device": "cuda"}, "no effect with train.device = 'cuda': it is for eager training on a CPU"),
        ("onednn", {"compile": "block"}, "no effect with train.compile = 'block'"),
        ("tf32x3", {"device": "cpu"}, "no effect with train.device = 'cpu': it is for a loss that is not compiled"),
        ("bf16x3", {"compile": "step"}, "no effect with train.compile = 'step'"),
    ],
)
def test_a_library_is_refused_where_it_has_no_effect(model, tmp_path, matmul, options, message):
    train = TrainConfig(steps=1, matmul=matmul, **options)
    with pytest.raises(ClipTrainError, match=message):
        resolve(FitConfig(run=str(tmp_path), model=ModelConfig(name="ViT-Ti-4-24"), train=train))
    here = torch.device("cpu" if matmul == "onednn" and "compile" in options else options.get("device", "cuda"))
    with pytest.raises(ClipTrainError, match=message):
        multiplier(replace(train, precision="fp32"), model, World(0, 1, here), {})


def test_products_of_the_loss_are_refused_for_logits_in_bf16(tmp_path):
    train, task = TrainConfig(steps=1, matmul="bf16x3"), ContrastiveConfig(logits="bf16")
    with pytest.raises(ClipTrainError, match=r"'bf16x3' has no effect with task\.logits = 'bf16'"):
        resolve(FitConfig(run=str(tmp_path), model=ModelConfig(name="ViT-Ti-4-24"), task=task, train=train))


def test_on_cuda_the_product_of_the_loss_is_measured_and_kept(model, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "fastest", lambda width, device: asked.append(width) or "tf32x3")
    world, metrics = World(0, 1, torch.device("cuda")), {}
    before = products._product
    for _ in range(2):
        with multiplier(TrainConfig(), model, world, metrics)():
            assert products._product is products.PRODUCTS["tf32x3"]
        assert products._product is before
    assert asked == [model.spec.embed_dim]
    assert metrics == {"matmul": 2.0}
    assert multiplier(TrainConfig(deterministic="strict"), model, world, {}) is nullcontext
    assert multiplier(TrainConfig(compile="step"), model, world, {}) is nullcontext
