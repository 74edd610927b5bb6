"""What `clip-train fit --dry-run` predicts, against what a real step does."""

import json
import sys

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from clip_models import create_model
from clip_train import ContrastiveConfig, DataConfig, FitConfig, ModelConfig, OptimConfig, TrainConfig, cli
from clip_train.config import resolve
from clip_train.estimate.config import Machines
from clip_train.estimate.run import estimate
from clip_train.estimate.simulation import simulate
from clip_train.gradients import Gradients
from clip_train.hardware import devices
from clip_train.model import make_model
from clip_train.optim.build import Optimization
from clip_train.parallel import World
from clip_train.synthetic import SyntheticConfig, SyntheticStream
from clip_train.tasks.siglip import SigLIPConfig

CPU = World(0, 1, torch.device("cpu"))


def config(batch: int = 32, *, name: str = "ViT-Ti-4-24", task=None, **train) -> FitConfig:
    train = {"steps": 100, "precision": "fp32", **train}
    return resolve(
        FitConfig(
            run="run",
            model=ModelConfig(name=name),
            task=task or ContrastiveConfig(),
            data=DataConfig(synthetic=SyntheticConfig(samples=1000)),
            optim=OptimConfig(warmup=10),
            train=TrainConfig(batch_size=batch, **train),
        )
    )


def real_step(config: FitConfig):
    """The gradients of a run, and a batch of it."""
    model = make_model(config.model, seed=0)
    task = config.task.build(model, precision=config.train.precision, world=CPU)
    step = Gradients(task, CPU, config.train, micro_batches=config.train.micro_batches)
    stream = SyntheticStream(
        config.data.synthetic,
        image_size=task.image_size,
        text_specs=task.text_specs,
        global_batch_size=config.train.batch_size,
    )
    return model, step, task.prepare(next(stream))


@pytest.mark.parametrize(
    "options",
    [{}, {"grad_checkpointing": "full"}, {"grad_checkpointing": "ops"}, {"precision": "bf16"}, {"micro_batches": 4}],
    ids=str,
)
@pytest.mark.slow
def test_memory_is_that_of_a_real_step(options):
    # The allocator of the CPU reports every byte to the profiler.
    setting = config(64, **options)
    _, step, batch = real_step(setting)
    inputs = sum(tensor.numel() * tensor.element_size() for tensor in batch.values())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step.backward(batch, 0)
    held = most = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    found = simulate(setting, 64 // setting.train.micro_batches)
    assert most > 30e6
    assert found.together == pytest.approx(most + inputs, rel=0.05)


@pytest.mark.slow
def test_flops_are_those_of_torch():
    setting = config(16)
    _, step, batch = real_step(setting)
    with FlopCounterMode(display=False) as counter:
        step.backward(batch, 0)
    found = simulate(setting, 16)
    assert found.flops + round(found.pair_flops * 16**2) == counter.get_total_flops()
    assert found.pair_flops == 2 * 4 * 128  # similarities twice, and their products with the features of both towers
    assert estimate(setting, Machines()).flops_per_sample == counter.get_total_flops() / 16


@pytest.mark.slow
def test_bytes_of_weights_and_optimizer():
    setting = config()
    model, step, batch = real_step(setting)
    step.backward(batch, 0)
    optimizer = Optimization(model, setting.optim, CPU.device).optimizer
    optimizer.step()
    state = sum(
        value.numel() * value.element_size() for values in optimizer.state.values() for value in values.values()
    )
    found = simulate(setting, 32)
    tensors = [*model.parameters(), *model.buffers()]
    assert found.weights == sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert found.gradients == sum(p.grad.numel() * 4 for p in model.parameters())
    assert found.optimizer == state


@pytest.mark.slow
def test_totals_follow_from_the_parts():
    found = estimate(config(64, samples=6400, steps=0), Machines(devices=4, device="a100", mfu=0.5, price=2.0))
    assert found.steps == 100
    assert found.seen == 6400
    assert found.epochs == 6.4
    assert found.local_batch == 16
    assert found.flops == 6400 * found.computed_per_sample
    assert found.hours == pytest.approx(found.flops / (devices()["a100"].fp32 * 0.5 * 4) / 3600)
    assert found.cost == pytest.approx(found.hours * 4 * 2)
    parts = {name: size for name, size in found.memory.items() if name not in ("total", "device")}
    assert found.memory["total"] == sum(parts.values())
    assert found.parameters["total"] == sum(p.numel() for p in create_model("ViT-Ti-4-24").parameters())
    whole = estimate(config(64), Machines())
    assert parts["weights"] == whole.memory["weights"] / 4


@pytest.mark.slow
def test_recomputation_costs_flops_and_not_more_of_the_model():
    plain, again = (estimate(config(grad_checkpointing=how), Machines()) for how in ("off", "full"))
    assert again.flops_per_sample == plain.flops_per_sample == plain.computed_per_sample
    assert 1.2 < again.computed_per_sample / plain.computed_per_sample < 1.35
    assert again.memory["activations"] < 0.7 * plain.memory["activations"]


@pytest.mark.slow
def test_the_command(tmp_path, monkeypatch, capsys):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f"""
        run = "{tmp_path / "run"}"
        model.name = "ViT-Ti-4-24"
        data.sources = [{{ dataset = "{tmp_path / "absent"}" }}]
        optim.warmup = "1%"
        train = {{ epochs = 2, batch_size = 64 }}
        """
    )

    def call(*flags: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clip-train", "fit", str(recipe), "--dry-run", "true", *flags])
        with pytest.raises(SystemExit) as ending:
            cli.main()
        return int(ending.value.code or 0), *capsys.readouterr()

    code, output, _ = call("--devices", "8")
    assert code == 0
    assert "holds no dataset" in output
    assert "2 epochs of data that was not found: steps, hours and cost are not known" in output
    assert "fsdp on 8" in output
    code, output, _ = call("--train.epochs", "0", "--train.steps", "50", "--json", "true", "--price", "3")
    assert code == 0
    found = json.loads(output)
    assert (found["steps"], found["seen"], found["schedule"]["warmup"]) == (50, 3200, 32)
    assert found["cost"] > 0
    assert not (tmp_path / "run").exists()
    for flags, message in [
        (("--device", "h10"), "did you mean h100"),
        (("--devices", "3"), "train.batch_size = 64 is not divisible by 3 devices"),
        (("--mfu", "1.5"), "mfu = 1.5 must be above 0 and at most 1"),
    ]:
        code, output, errors = call(*flags)
        assert (code, output) == (2, "")
        assert message in errors


@pytest.mark.slow
def test_a_siglip_is_estimated():
    found = estimate(config(name="ViT-B-16-SigLIP", task=SigLIPConfig()), Machines())
    assert found.parameters["total"] == 203_155_970
