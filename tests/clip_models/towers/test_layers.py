import pytest
import torch

from clip_models import ClipModelsError, CLIPTextConfig
from clip_models.towers.layers import Block, LayerNorm, Transformer, attend, take_indices


def draw_block(causal=False, **options):
    torch.manual_seed(0)
    block = Block(CLIPTextConfig(width=64, heads=4, **options), quick_gelu=False, causal=causal)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return block


@pytest.mark.parametrize("mask", ["none", "causal", "given"])
def test_pooled_block_gives_the_row_of_the_whole_block(mask):
    block = draw_block(causal=mask == "causal", ls_init_value=0.5)
    x, rows = torch.randn(3, 9, 64, requires_grad=True), torch.tensor([0, 8, 4])
    seen = torch.ones(3, 1, 9, 9).bernoulli(0.5).bool() | torch.eye(9).bool() if mask == "given" else None
    gradients = []
    outputs = [block(x, seen, pool_B=rows), block(x, seen)[torch.arange(3), rows]]
    for output in outputs:
        gradients.append(torch.autograd.grad(output.square().sum(), [x, *block.parameters()]))
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-5)
    for mine, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-4, rtol=1e-4)


def test_a_causal_block_looks_to_the_left_only():
    block, x = draw_block(causal=True), torch.randn(2, 9, 64)
    changed = x.clone()
    changed[:, 5:] = torch.randn(2, 4, 64)
    torch.testing.assert_close(block(x)[:, :5], block(changed)[:, :5])
    assert not torch.allclose(block(x)[:, 5:], block(changed)[:, 5:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_layer_norm_keeps_the_dtype_and_computes_in_float32(dtype):
    norm, x = LayerNorm(64), 100 + torch.randn(5, 64)
    y = norm(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y, norm(x.to(dtype).float()).to(dtype))


@pytest.mark.parametrize("options", [{"ls_init_value": 0.1}, {"causal": True, "quick_gelu": True}, {"gelu_tanh": True}])
@pytest.mark.parametrize("pooled", [False, True])
def test_checkpointing_changes_no_gradient_and_keeps_less(options, pooled):
    torch.manual_seed(0)
    config = {key: value for key, value in options.items() if key not in ("causal", "quick_gelu")}
    switches = {"quick_gelu": options.get("quick_gelu", False), "causal": options.get("causal", False)}
    stack = Transformer(CLIPTextConfig(width=64, heads=4, layers=3, **config), **switches)
    x = torch.randn(2, 9, 64)
    pool = torch.tensor([3, 8]) if pooled else None
    gradients, kept = [], []
    for enable in (False, True):
        stack.grad_checkpointing = enable
        stack.zero_grad()
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):  # noqa: B023
            loss = stack(x, pool_B=pool).square().sum()
        loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in stack.named_parameters()})
        kept.append(sum(saved))
    assert kept[1] < 0.2 * kept[0]
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, msg=name)


def test_take_indices():
    assert take_indices(4, None) == [0, 1, 2, 3]
    assert take_indices(4, 2) == [2, 3]
    assert take_indices(4, [0, -1]) == [0, 3]
    for wrong in (0, 5, -1, [4], [-5], []):
        with pytest.raises(ClipModelsError):
            take_indices(4, wrong)


@pytest.mark.parametrize("autocast", [False, True])
def test_attention_that_is_trained_in_low_precision_has_gradients_exact_to_its_rounding(autocast):
    torch.manual_seed(0)
    exact = [torch.randn(2, 4, 50, 32).bfloat16().double().requires_grad_() for _ in range(3)]
    low = [tensor.detach().bfloat16().requires_grad_() for tensor in exact]
    weight = torch.randn(2, 4, 50, 32).bfloat16()
    expected = attend(*exact, causal=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = attend(*low, causal=True)
    assert (expected.dtype, found.dtype) == (torch.float64, torch.bfloat16)
    (expected * weight.double()).sum().backward()
    (found * weight).sum().backward()
    rounding = torch.finfo(torch.bfloat16).eps / 2
    for mine, theirs in zip((found, *(t.grad for t in low)), (expected, *(t.grad for t in exact)), strict=True):
        # PyTorch's own kernel for bfloat16 misses this by its rounded products.
        assert (mine.double() - theirs).norm() < 0.6 * rounding * theirs.norm()
