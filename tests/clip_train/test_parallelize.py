"""A model that is shared, recomputed, compiled or in another precision trains as it does on one process."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clip_models import ModelSpec, get_model_spec
from clip_models.model import build_model, build_shapes
from clip_models.model.drawing import draw_model, named_tensors
from clip_train import DataConfig, FitConfig, ModelConfig, Source, TrainConfig
from clip_train.config import resolve
from clip_train.errors import ClipTrainError
from clip_train.gradients import Gradients
from clip_train.model import draw_scalars
from clip_train.optim.build import make_optimizer
from clip_train.optim.config import OptimConfig, SpikeConfig
from clip_train.parallel import join_world
from clip_train.parallelize import precision as precisions
from clip_train.parallelize.config import ParallelConfig
from clip_train.parallelize.placement import place
from clip_train.tasks.contrastive import ContrastiveConfig
from clip_train.tasks.siglip import SigLIPConfig
from clip_train.tasks.temperature import LogitBiasConfig
from tests.support.distributed import run_ranks
from tests.support.steps import CASES, FP32, HERE, PAIRS, VIT, batch_of, whole
from tests.support.towers import BERT, TRUNK
from tests.support.training import largest_difference, train

LARGER = replace(VIT.preprocess, size=(32, 32))
TASKS = ("patch dropout", "siglip", "coca", "distillation")
Case = tuple[str, ParallelConfig, int]
# Every pair of values of (task, placement, recomputation, micro-batches); with averages and clipping by tower.
MATRIX: list[Case] = [
    (task, replace(FP32, parallel=parallel, grad_checkpointing=recompute), parts)
    for tasks, ways in (
        (TASKS[::2], (("ddp", "off", 2), ("ddp", "full", 1), ("fsdp", "ops", 2))),
        (TASKS[1::2], (("fsdp", "off", 1), ("fsdp", "full", 2), ("ddp", "ops", 1))),
    )
    for task in tasks
    for parallel, recompute, parts in ways
]


def on_ranks(cases: list[Case]) -> list[dict]:
    with join_world("cpu") as world:
        return [train(task, world, parallel, parts) for task, parallel, parts in cases]


@pytest.mark.slow
def test_two_ranks_train_as_one_process_in_every_combination():
    alone = {task: train(task, HERE) for task in TASKS}
    for found in run_ranks(2, on_ranks, MATRIX):
        for (task, parallel, parts), values in zip(MATRIX, found, strict=True):
            assert largest_difference(values, alone[task]) < 1e-5, (task, parallel, parts)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "shard", "offload", "parts"), [(4, 2, False, 3), (6, 3, False, 2), (2, 0, True, 1)])
def test_copies_of_shards_and_offloaded_shards_train_as_one_process(ranks, shard, offload, parts):
    cases: list[Case] = [("coca", replace(FP32, parallel="fsdp", shard=shard, offload=offload), parts)]
    for found in run_ranks(ranks, on_ranks, cases):
        for (task, *_), values in zip(cases, found, strict=True):
            assert largest_difference(values, train(task, HERE)) < 1e-5, task


def drawn_weights(spec: ModelSpec) -> list[tuple[str, bool, np.ndarray]]:
    with join_world("cpu") as world:
        model = build_shapes(spec)
        draw_scalars(model, 5)
        assert all(p.is_meta for p in model.parameters() if p.ndim)
        task = SigLIPConfig(logit_bias=LogitBiasConfig(init=-7.0)).build(model, precision="fp32", world=world)
        task.model.logit_bias.requires_grad_(False)
        Gradients(task, world, replace(FP32, parallel="fsdp"), seed=5)
        return [(key, t.requires_grad, whole(t.detach()).numpy()) for key, t in named_tensors(model)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["native", "libraries"])
def test_weights_that_are_drawn_shard_by_shard_are_those_of_the_whole_model(kind):
    spec = VIT if kind == "native" else replace(VIT, vision=TRUNK, text=BERT, preprocess=LARGER, custom_text=True)
    wanted, others = draw_model(spec, 5), draw_model(spec, 6)
    for found in run_ranks(3, drawn_weights, spec):
        values = {key: value for key, _, value in found}
        assert values.pop("logit_bias") == -7.0
        frozen = {key for key, tensor in named_tensors(wanted) if not tensor.requires_grad}
        assert {key for key, trained, _ in found if not trained} == {"logit_bias", *frozen}
        assert values.keys() == {key for key, _ in named_tensors(wanted)}
        for key, tensor in named_tensors(wanted):
            assert np.array_equal(values[key], tensor.detach().numpy()), key
        assert any(not np.array_equal(values[key], tensor.detach().numpy()) for key, tensor in named_tensors(others))


def sharded_parts() -> dict[str, object]:
    with join_world("cpu") as world:
        task = ContrastiveConfig().build(build_model(get_model_spec("ViT-Ti-4-24")), precision="fp32", world=world)
        whole = sum(p.numel() for p in task.model.parameters())
        Gradients(task, world, replace(FP32, parallel="fsdp"))
        local = sum(precisions.local(p).numel() for p in task.model.parameters())
        groups = sum(type(module).__name__.startswith("FSDP") for module in task.module().modules())
        found: dict[str, object] = {"share": local / whole, "groups": groups}
        for key, act in {
            "error": lambda: place(task.module(), [], world, replace(FP32, parallel="fsdp", shard=3)),
            "optimizer": lambda: make_optimizer(task.model, OptimConfig(name="lamb")),
        }.items():
            try:
                act()
            except ClipTrainError as error:
                found[key] = str(error)
        return found


@pytest.mark.slow
def test_each_rank_holds_its_share_of_every_block():
    for found in run_ranks(2, sharded_parts):
        assert found["share"] == pytest.approx(0.5, abs=0.01)
        assert found["groups"] == 6 + 1  # blocks, and what is outside of them
        assert found["error"] == "train.shard = 3 does not divide the 2 ranks of the run"
        assert str(found["optimizer"]).startswith(
            "optim.name = 'lamb' needs whole tensors, and the weights are sharded"
        )


@pytest.mark.parametrize("how", ["full", "ops"])
def test_recomputation_changes_no_gradient(how):
    wanted, found = (train("patch dropout", HERE, replace(FP32, grad_checkpointing=each)) for each in ("off", how))
    assert largest_difference(found, wanted) < 1e-6


def test_recomputation_keeps_less():
    kept = {}
    for how in ("off", "full"):
        task = ContrastiveConfig().build(build_model(CASES["contrastive"][1]), precision="fp32", world=HERE)
        Gradients(task, HERE, replace(FP32, grad_checkpointing=how))
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        batch = task.prepare(batch_of(task, range(PAIRS)))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            task.module()(batch)
        kept[how] = sum(sizes.values())
    assert kept["full"] < 0.6 * kept["off"]


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.02), ("fp16", 0.01), ("pure_bf16", 0.05)])
def test_low_precision_trains_nearly_alike(precision, tolerance):
    # Of the losses alone: gradients of single pairs differ more.
    wanted = train("contrastive", HERE)
    found = train("contrastive", HERE, ParallelConfig(precision=precision))
    for key in ("0 loss", "1 loss"):
        assert found[key] == pytest.approx(wanted[key], rel=tolerance)
        assert found[key] != wanted[key]


def test_pure_bf16_keeps_the_scale_of_the_logits_in_float32():
    task = ContrastiveConfig().build(build_model(CASES["contrastive"][1]), precision="pure_bf16", world=HERE)
    Gradients(task, HERE, ParallelConfig(precision="pure_bf16"))
    kinds = {name: parameter.dtype for name, parameter in task.model.named_parameters()}
    assert kinds.pop("logit_scale") == torch.float32
    assert set(kinds.values()) == {torch.bfloat16}


def test_an_overflow_lowers_the_scale_and_leaves_the_step_out():
    device = torch.device("cpu")
    scale = precisions.LossScale(device, start=8.0, interval=2)
    guard = precisions.ScaledGuard(SpikeConfig(), device, scale)
    one, infinite = torch.tensor(1.0), torch.tensor(torch.inf)

    def step(loss: torch.Tensor, norm: torch.Tensor) -> tuple[bool, float]:
        good = bool(guard.judge(loss, norm))
        values = {name: float(value) for name, value in guard.verdict().items()}
        assert guard.settle(1, float(loss), float(norm), 0.1, values) == good
        assert not values
        return good, float(scale.value)

    assert [step(one, infinite), step(one, one), step(one, one)] == [(False, 4.0), (True, 4.0), (True, 8.0)]
    with pytest.raises(ClipTrainError, match="the loss is nan"):
        step(torch.tensor(torch.nan), infinite)
    state = scale.state()
    other = precisions.LossScale(device)
    other.load_state(state)
    assert float(other.value) == float(scale.value)


def test_float8_changes_the_linear_layers_of_the_blocks():
    pytest.importorskip("torchao")
    model = build_model(CASES["contrastive"][1])
    before = {name for name, _ in model.named_parameters()}
    assert precisions.to_float8(model.blocks(), emulate=True) == 3 * 6  # out_proj, c_fc and c_proj of each block
    assert {name for name, _ in model.named_parameters()} == before
    model.encode_image(torch.randn(2, 3, 24, 24)).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_float8_needs_a_device_that_has_it():
    task = ContrastiveConfig().build(build_model(CASES["contrastive"][1]), precision="fp8", world=HERE)
    with pytest.raises(ClipTrainError, match=r"precision = 'fp8' needs a CUDA device of compute capability 8\.9"):
        Gradients(task, HERE, ParallelConfig(precision="fp8"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"shard": 1}, r"train\.shard = 1 must be 0 or at least 2"),
        ({"parallel": "ddp", "shard": 2}, r"train\.shard = 2 has no effect with train\.parallel = 'ddp'"),
        ({"parallel": "ddp", "offload": True}, r"train\.offload = True has no effect"),
        ({"parallel": "fsdp", "compile": "model"}, r"train\.compile = 'model' does not work with a sharded model"),
        ({"compile": "step", "micro_batches": 2}, r"'step' does not work with train\.micro_batches = 2"),
        ({"compile_backend": "eager"}, r"train\.compile_backend = 'eager' has no effect with train\.compile = 'off'"),
        ({"compile_limit": 0}, r"train\.compile_limit = 0 must be at least 1"),
    ],
)
def test_what_cannot_work_together_is_refused_by_name(keys, message):
    config = FitConfig(
        run="run",
        model=ModelConfig(name="ViT-Ti-4-24"),
        data=DataConfig(sources=(Source(dataset="data"),)),
        train=TrainConfig(steps=1, **keys),
    )
    with pytest.raises(ClipTrainError, match=message):
        resolve(config)
