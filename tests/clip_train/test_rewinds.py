"""Runs that go back from a spike to a checkpoint: which samples they leave out, and what they end with."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clip_data.stream import SampleStream, build_manifest
from clip_train import (
    CheckpointConfig,
    ClipTrainError,
    DataConfig,
    FitConfig,
    ModelConfig,
    OptimConfig,
    Source,
    TrainConfig,
    ValConfig,
    fit,
)
from clip_train.config import plan_of
from clip_train.feed import Feed
from clip_train.gradients import Gradients
from clip_train.loop import Loop
from clip_train.model import make_model
from clip_train.optim.build import Optimization, learning_rate
from clip_train.optim.config import EmaConfig, SpikeConfig
from clip_train.parallel import World
from clip_train.trainer import make_stream
from tests.support.distributed import run_ranks
from tests.support.spikes import SpikyConfig
from tests.support.trainer import start, wait_for

HERE = World(0, 1, torch.device("cpu"))
STEPS = 8
REWIND = SpikeConfig(action="rewind", window=2, loss=10.0, norm=0, most=2)


@pytest.fixture(scope="module")
def recipe(datasets) -> FitConfig:
    return FitConfig(
        run="",
        model=ModelConfig(name="ViT-Ti-4-24"),
        data=DataConfig(sources=(Source(dataset=str(datasets / "train")),), workers=0),
        task=SpikyConfig(),
        optim=OptimConfig(lr=1e-3, warmup=2, spike=REWIND),
        train=TrainConfig(
            steps=STEPS, batch_size=4, precision="fp32", threads=1, log_every=1, device="cpu", matmul="torch"
        ),
        checkpoint=CheckpointConfig(every=3),
    )


@pytest.fixture(scope="module")
def batches(recipe) -> list[list[str]]:
    """The uids of the batches of the first epoch, read without a run."""
    with SampleStream(
        build_manifest(recipe.data.sources),
        preprocess=make_model(recipe.model, seed=0).spec.preprocess.to_dict(),
        tokenizer=None,
        global_batch_size=4,
        seed=recipe.train.seed,
        workers=0,
    ) as stream:
        return [next(stream)["uid"] for _ in range(10)]


def spiky(recipe: FitConfig, run: Path, *uids: str, factor: float = 100.0, **spike) -> FitConfig:
    optim = dataclasses.replace(recipe.optim, spike=dataclasses.replace(REWIND, **spike))
    task = SpikyConfig(at=uids, factor=factor)
    return dataclasses.replace(recipe, run=str(run), task=task, optim=optim)


def weights_without(recipe: FitConfig, left_out: set[int]) -> dict[str, torch.Tensor]:
    """The weights after a training loop of the same steps over a stream that never had some batches."""
    model = make_model(recipe.model, seed=recipe.train.seed)
    task = recipe.task.build(model, precision="fp32", world=HERE)
    optim = Optimization(model, recipe.optim, HERE.device)
    stream = make_stream(recipe, build_manifest(recipe.data.sources), task, HERE)
    kept = (batch for number, batch in enumerate(stream) if number not in left_out)
    Loop(
        task=task,
        gradients=Gradients(task, HERE, recipe.train, seed=recipe.train.seed),
        optimizer=optim.optimizer,
        feed=Feed(stream, task, HERE, items=kept),
        rate=learning_rate(recipe.optim, plan_of(recipe, STEPS, 40), 4),
        steps=STEPS,
        clip=optim.clip,
        guard=optim.guard,
    ).run()
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def events(run: str, name: str) -> list[dict]:
    lines = [json.loads(line) for line in (Path(run) / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line.get("event") == name]


def steps_of(run: str) -> list[int]:
    lines = [json.loads(line) for line in (Path(run) / "log.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "event" not in line]


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())


def assert_close(recipe: FitConfig, found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    start = make_model(recipe.model, seed=recipe.train.seed).state_dict()
    error, moved = (
        torch.cat([(left[name] - right[name]).ravel() for name in wanted]).norm()
        for left, right in ((found, wanted), (start, wanted))
    )
    assert error < 1e-3 * moved  # AdamW makes much of differences in small gradients


@pytest.mark.slow
@pytest.mark.parametrize("factor", [100.0, 0.0])  # 0: NaN
def test_a_run_goes_on_from_the_checkpoint_before_a_spike_without_the_batches_up_to_it(
    recipe, batches, tmp_path, capsys, factor
):
    config = spiky(recipe, tmp_path / "run", batches[4][1], factor=factor)  # in step 5; step 3 was saved
    result = fit(config)
    assert_same(load_file(result.model), weights_without(recipe, {3, 4}))
    [event] = events(config.run, "rewind")
    assert {name: event[name] for name in ("step", "spike", "batches")} == {"step": 3, "spike": 5, "batches": 5}
    assert steps_of(config.run) == list(range(1, STEPS + 1))
    assert "step 5: the loss is" in (shown := capsys.readouterr().err)
    assert "goes back to step 3, and leaves out the 2 batches since" in shown


@pytest.mark.slow
def test_a_second_spike_leaves_out_more_and_a_third_ends_the_run(recipe, batches, datasets, tmp_path):
    config = spiky(recipe, tmp_path / "run", batches[4][0], batches[6][3])
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, workers=1),
        val=ValConfig(sources=(Source(dataset=str(datasets / "val")),), batch_size=4, every=2),
        optim=dataclasses.replace(config.optim, ema=EmaConfig(decay=0.9)),
        train=dataclasses.replace(config.train, micro_batches=2),
    )
    result = fit(config)
    assert_close(recipe, load_file(result.model), weights_without(recipe, {3, 4, 5, 6}))
    assert [event["batches"] for event in events(config.run, "rewind")] == [5, 7]
    assert [event["step"] for event in events(config.run, "validation")] == [2, 4, 6, 8]
    config = spiky(recipe, tmp_path / "other", batches[4][0], batches[6][3], batches[8][0])
    with pytest.raises(ClipTrainError, match=r"step 5: .*gone back to step 3 2 times \(optim\.spike\.most\)"):
        fit(config)


def test_a_spike_before_the_first_checkpoint_ends_the_run(recipe, batches, tmp_path):
    config = spiky(recipe, tmp_path / "run", batches[2][0])
    config = dataclasses.replace(config, checkpoint=CheckpointConfig(every=100))
    with pytest.raises(ClipTrainError, match=r"step 3: .* no checkpoint to go back to: lower checkpoint\.every"):
        fit(config)


@pytest.mark.slow
def test_killed_after_it_went_back_a_run_leaves_out_the_same_batches(recipe, batches, tmp_path):
    config = spiky(recipe, tmp_path / "run", batches[4][1])
    record = Path(config.run, "rewinds.json")
    process = start(config, tmp_path)
    wait_for(record.exists, process)
    process.kill()
    process.wait(30)
    result = fit(config)
    assert len(json.loads(record.read_text())) == 1
    assert_same(load_file(result.model), weights_without(recipe, {3, 4}))


@pytest.mark.slow
def test_a_fork_goes_on_after_the_samples_of_its_parent(recipe, batches, tmp_path):
    parent = spiky(recipe, tmp_path / "run", batches[4][1])
    fit(parent)
    train = dataclasses.replace(recipe.train, steps=13, batch_size=2)
    child = dataclasses.replace(recipe, run=str(tmp_path / "child"), parent=f"{parent.run}@6", train=train)
    fit(child)
    state = json.loads(next(Path(child.run, "checkpoints").glob("*12/state.json")).read_text())
    assert state["stream"]["step"] == 2 * (6 + 2)


@pytest.mark.slow
def test_a_fork_of_such_a_run_goes_back_itself(recipe, batches, tmp_path):
    parent = spiky(recipe, tmp_path / "run", batches[4][1])  # step 6 has read 8 batches
    fit(parent)
    train = dataclasses.replace(recipe.train, steps=10)
    child = spiky(recipe, tmp_path / "child", batches[9][0], window=3)  # in its step 8
    fit(dataclasses.replace(child, parent=f"{parent.run}@6", train=train))
    [event] = events(child.run, "rewind")
    assert {name: event[name] for name in ("checkpoint", "spike", "batches")} == {
        "checkpoint": 6, "spike": 8, "batches": 10
    }  # fmt: skip


def on_a_rank(config: FitConfig) -> str:
    return fit(config).model


@pytest.mark.slow
def test_all_ranks_go_back_together(recipe, batches, tmp_path):
    config = spiky(recipe, tmp_path / "run", batches[4][3])
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, parallel="fsdp"))
    model, _ = run_ranks(2, on_a_rank, config)
    assert_close(recipe, load_file(model), weights_without(recipe, {3, 4}))
