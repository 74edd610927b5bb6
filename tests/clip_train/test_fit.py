"""Whole runs: to the end, killed, stopped by signals, on several ranks."""

import dataclasses
import io
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from clip_core.config import load_file as load_config
from clip_core.config import to_dict
from clip_data.dataset import Dataset
from clip_data.select import SelectConfig, select
from clip_data.stream import build_manifest
from clip_models import create_model, create_model_and_transforms, get_tokenizer, load_model
from clip_train import (
    CheckpointConfig,
    ClipTrainError,
    DataConfig,
    FitConfig,
    FitResult,
    ModelConfig,
    OptimConfig,
    Source,
    TrainConfig,
    ValConfig,
    fit,
)
from clip_train.runfolder import RunFolder
from clip_train.trainer import train
from tests.support.distributed import free_port, rank_environment
from tests.support.trainer import logged, start, wait_for

STEPS = 10


@pytest.fixture(scope="module")
def recipe(datasets) -> FitConfig:
    """Ten steps of eight images: two epochs, three checkpoints, two validations."""
    return FitConfig(
        run="",
        model=ModelConfig(name="ViT-Ti-4-24"),
        data=DataConfig(sources=(Source(dataset=str(datasets / "train")),), hflip=0.5),
        val=ValConfig(sources=(Source(dataset=str(datasets / "val")),), batch_size=8, every=5),
        optim=OptimConfig(lr=1e-3, warmup=2, grad_clip_norm=5.0),
        train=TrainConfig(steps=STEPS, batch_size=8, precision="bf16", threads=1, log_every=1, device="cpu"),
        checkpoint=CheckpointConfig(every=4),
    )


@pytest.fixture(scope="module")
def uninterrupted(recipe, tmp_path_factory) -> tuple[FitConfig, FitResult]:
    config = dataclasses.replace(recipe, run=str(tmp_path_factory.mktemp("uninterrupted") / "run"))
    return config, fit(config)


def lines_of(run: str | Path) -> list[dict]:
    return [json.loads(line) for line in (Path(run) / "log.jsonl").read_text().splitlines()]


def steps_of(run: str | Path) -> list[dict]:
    return [line for line in lines_of(run) if "event" not in line]


@pytest.mark.slow
def test_a_run_leaves_its_config_log_checkpoints_and_weights(uninterrupted):
    config, result = uninterrupted
    run = Path(config.run)
    assert sorted(path.name for path in run.iterdir() if not path.name.startswith(".")) == [
        "checkpoints",
        "config.json",
        "done.json",
        "live.html",
        "log.jsonl",
        "model.safetensors",
        "tensorboard",
    ]
    assert load_config(run / "config.json") == to_dict(config)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000008", "step-00000010"]
    umask = os.umask(0)
    os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in run.rglob("*") if path.is_file()} == {0o666 & ~umask}

    steps = steps_of(run)
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    assert set(steps[0]) == {
        *("step", "epoch", "samples", "loss", "lr", "grad_norm", "logit_scale", "samples_per_s"),
        *("grad_norm_image", "grad_norm_text", "grad_norm_other"),
        *("loader_wait_s", "corrupt", "truncated", "skipped", "wait_s", "time_s"),
        *("positive_similarity", "negative_similarity", "text_tokens_per_s", "mfu", "host_memory_mib"),
    }
    assert (steps[-1]["epoch"], steps[-1]["samples"]) == (2.0, 80)
    assert [line["lr"] for line in steps[:3]] == [5e-4, 1e-3, 1e-3]
    assert steps[-1]["loss"] == result.loss < steps[0]["loss"]
    validations = [line for line in lines_of(run) if line.get("event") == "validation"]
    assert [(line["step"], line["samples"], line["left_out"]) for line in validations] == [(5, 16, 4), (10, 16, 4)]
    assert validations[-1]["val_loss"] == result.val_loss

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("train/loss")] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_the_exported_weights_are_those_that_were_trained(uninterrupted):
    config, result = uninterrupted
    model, spec = load_model(result.model, expect="ViT-Ti-4-24")
    assert spec == model.spec
    (saved,) = (Path(config.run) / "checkpoints" / "step-00000010").glob("*.safetensors")
    last = {name.removeprefix("model/"): tensor for name, tensor in load_file(saved).items()}
    first = create_model("ViT-Ti-4-24", seed=0).state_dict()
    assert all(torch.equal(tensor, last[name]) for name, tensor in model.state_dict().items())
    assert not any(torch.equal(tensor, first[name]) for name, tensor in model.state_dict().items() if tensor.ndim == 2)


@pytest.mark.slow
def test_a_finished_run_is_not_run_again(uninterrupted, monkeypatch):
    config, result = uninterrupted
    monkeypatch.setattr("clip_train.trainer.train", lambda *_: pytest.fail("trained again"))
    assert fit(config) == result


@pytest.mark.slow
def test_done_json_can_be_removed_to_export_again(uninterrupted):
    config, result = uninterrupted
    (Path(config.run) / "done.json").unlink()
    assert fit(config) == result


@pytest.mark.slow
def test_killed_anywhere_it_ends_with_the_same_bits(recipe, uninterrupted, tmp_path):
    config = dataclasses.replace(recipe, run=str(tmp_path / "run"))
    run = Path(config.run)
    draw = random.Random()
    moments = {
        "after some step of the first epoch": logged(run, draw.randrange(1, 4)),
        "while a checkpoint is written": lambda: any((run / "checkpoints").glob("*/.tmp-*")),
        "after some step of the second epoch": logged(run, draw.randrange(5, 8)),
        "at the end": logged(run, STEPS),
    }
    for condition in moments.values():
        process = start(config, tmp_path)
        wait_for(condition, process)
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        process.communicate()
        assert not (run / "done.json").exists()
    process = start(config, tmp_path)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors

    wanted, result = uninterrupted[1], fit(config)
    assert repr(result.loss) == repr(wanted.loss)
    assert repr(result.val_loss) == repr(wanted.val_loss)
    assert result.model_sha256 == wanted.model_sha256
    assert f"loss {result.loss:.4f}" in output
    computed = [{k: v for k, v in line.items() if k not in MEASURED} for line in steps_of(run)]
    assert computed == [{k: v for k, v in line.items() if k not in MEASURED} for line in steps_of(uninterrupted[0].run)]
    assert sum(line.get("event") == "validation" for line in lines_of(run)) == 2


# What is measured, and differs between equal runs.
MEASURED = ("samples_per_s", "image_tokens_per_s", "text_tokens_per_s", "mfu", "host_memory_mib", "loader_wait_s",
            "wait_s", "time_s")  # fmt: skip


@pytest.mark.slow
def test_a_stop_signal_on_one_rank_saves_on_all_and_asks_for_a_requeue(recipe, tmp_path):
    config = dataclasses.replace(
        recipe,
        run=str(tmp_path / "run"),
        train=dataclasses.replace(recipe.train, steps=1000, precision="fp32"),
        checkpoint=CheckpointConfig(every=1000),
    )
    port = free_port()
    ranks = [start(config, tmp_path, rank_environment(rank, 2, port)) for rank in range(2)]
    wait_for(logged(Path(config.run), 2), ranks[0])
    ranks[1].send_signal(signal.SIGTERM)
    endings = [process.communicate(timeout=120) for process in ranks]
    assert [process.returncode for process in ranks] == [75, 75], endings
    saved = [int(path.name[5:]) for path in (Path(config.run) / "checkpoints").iterdir()]
    assert saved == [steps_of(config.run)[-1]["step"]]
    assert f"after step {saved[0]}" in endings[0][1]
    assert endings[1] == ("", "")


@pytest.mark.slow
def test_two_ranks_learn_what_one_does_and_one_can_go_on_where_two_were(recipe, tmp_path):
    exact = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, precision="fp32"))
    alone = dataclasses.replace(exact, run=str(tmp_path / "alone"))
    wanted = fit(alone)

    shared = dataclasses.replace(exact.train, parallel="fsdp")
    together = dataclasses.replace(exact, run=str(tmp_path / "together"), train=shared)
    port = free_port()
    ranks = [start(together, tmp_path, rank_environment(rank, 2, port)) for rank in range(2)]
    wait_for(logged(Path(together.run), 5), ranks[0])
    ranks[0].send_signal(signal.SIGUSR1)
    for process in ranks:
        process.communicate(timeout=120)
        assert process.returncode == 75
    result = fit(together)
    assert result.loss == pytest.approx(wanted.loss, rel=1e-3)
    assert result.val_loss == pytest.approx(wanted.val_loss, rel=1e-3)
    assert steps_of(together.run)[0]["loss"] == pytest.approx(steps_of(alone.run)[0]["loss"], rel=1e-5)
    for found, line in zip(steps_of(together.run), steps_of(alone.run), strict=True):
        assert found["loss"] == pytest.approx(line["loss"], rel=1e-3)
        assert found["samples"] == line["samples"]
    starts = [line for line in lines_of(together.run) if line.get("event") in ("start", "resume")]
    assert [(line["event"], line["ranks"]) for line in starts] == [("start", 2), ("resume", 1)]


@pytest.mark.slow
def test_two_threads_give_the_same_bits_twice_in_bf16(recipe, tmp_path):
    results = []
    for name in ("one", "two"):
        config = dataclasses.replace(
            recipe,
            run=str(tmp_path / name),
            train=dataclasses.replace(recipe.train, steps=2, threads=2),
            optim=OptimConfig(lr=1e-3),
        )
        results.append(fit(config))
    assert repr(results[0].loss) == repr(results[1].loss)
    assert results[0].model_sha256 == results[1].model_sha256


@pytest.mark.slow
def test_the_rate_is_compared_with_that_of_the_precision_that_is_computed_in(recipe, tmp_path, monkeypatch):
    """Measuring the products of a precision that the CPU emulates takes longer than the run."""
    measured = []
    monkeypatch.setattr("clip_train.monitor.flops._seconds", lambda left, _: measured.append(left.dtype) or 1.0)
    fit(dataclasses.replace(recipe, run=str(tmp_path / "run"), train=dataclasses.replace(recipe.train, steps=3)))
    native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert set(measured) == {torch.bfloat16 if native else torch.float32}


@pytest.mark.slow
def test_the_caller_keeps_its_generator_threads_and_signal_handlers(recipe, tmp_path):
    threads, handlers = torch.get_num_threads(), [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1)]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    fit(dataclasses.replace(recipe, run=str(tmp_path / "run"), train=dataclasses.replace(recipe.train, steps=3)))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1)] == handlers


@pytest.mark.slow
def test_training_starts_from_given_weights(recipe, uninterrupted, tmp_path):
    config = dataclasses.replace(
        recipe,
        run=str(tmp_path / "run"),
        model=ModelConfig(name="ViT-Ti-4-24", pretrained=uninterrupted[1].model),
        train=dataclasses.replace(recipe.train, steps=3),
    )
    fit(config)
    assert steps_of(config.run)[0]["loss"] < steps_of(uninterrupted[0].run)[0]["loss"] * 0.9


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(recipe, uninterrupted, tmp_path, capsys):
    config = dataclasses.replace(recipe, run=str(tmp_path / "run"))
    shutil.copytree(uninterrupted[0].run, config.run)
    (tmp_path / "run" / "done.json").unlink()
    newest = tmp_path / "run" / "checkpoints" / "step-00000010"
    next(newest.glob("*.safetensors")).write_bytes(b"nothing")
    assert fit(config).model_sha256 == uninterrupted[1].model_sha256
    assert f"the checkpoint {newest} is damaged" in capsys.readouterr().err
    (event,) = [line for line in lines_of(config.run) if line.get("event") == "damaged_checkpoint"]
    assert (event["step"], event["checkpoint"]) == (8, "step-00000010")
    assert Path(event["folder"]).is_dir()
    assert steps_of(config.run)[-1]["step"] == STEPS


@pytest.mark.slow
def test_a_run_without_its_checkpoints_is_refused_and_keeps_its_log(recipe, uninterrupted, tmp_path):
    config = dataclasses.replace(recipe, run=str(tmp_path / "run"))
    shutil.copytree(uninterrupted[0].run, config.run)
    (tmp_path / "run" / "done.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    before = (tmp_path / "run" / "log.jsonl").read_bytes()
    with pytest.raises(ClipTrainError, match="says that step 10 was saved"):
        fit(config)
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == before


def cut_shards(root: Path, count: int) -> None:
    """Shortens the first tars to a few bytes."""
    for tar in sorted((root / "shards").glob("*.tar"))[:count]:
        tar.write_bytes(tar.read_bytes()[:600])


@pytest.mark.slow
@pytest.mark.parametrize(("where", "read"), [("data", "40 samples"), ("val", "20 held-out samples")])
def test_too_many_corrupt_samples_end_the_run(recipe, tmp_path, datasets, where, read):
    for name in ("train", "val"):
        shutil.copytree(datasets / name, tmp_path / name)
    cut_shards(tmp_path / ("train" if where == "data" else "val"), 2)
    config = dataclasses.replace(
        recipe,
        run=str(tmp_path / "run"),
        data=dataclasses.replace(recipe.data, sources=(Source(dataset=str(tmp_path / "train")),), workers=0),
        val=ValConfig(sources=(Source(dataset=str(tmp_path / "val")),), batch_size=2, every=1000),
        train=dataclasses.replace(recipe.train, steps=5),
    )
    corrupt = rf"\d+ of the {read} read so far are corrupt \(\d+\.\d%; {where}.max_corrupt = 0.05\), among them "
    with pytest.raises(ClipTrainError, match=corrupt):
        fit(config)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    part = dataclasses.replace(getattr(config, where), max_corrupt=1.0)
    assert fit(dataclasses.replace(config, **{where: part})).steps == 5


@pytest.mark.slow
def test_the_ranks_judge_corrupt_samples_together(recipe, tmp_path, datasets):
    shutil.copytree(datasets / "train", tmp_path / "train")
    cut_shards(tmp_path / "train", 1)
    config = dataclasses.replace(
        recipe,
        run=str(tmp_path / "run"),
        data=DataConfig(sources=(Source(dataset=str(tmp_path / "train")),), workers=0),
        val=ValConfig(),
    )
    port = free_port()
    ranks = [start(config, tmp_path, rank_environment(rank, 2, port)) for rank in range(2)]
    endings = [process.communicate(timeout=120) for process in ranks]
    assert [process.returncode for process in ranks] == [2, 2], endings
    assert "of the 40 samples read so far are corrupt" in endings[0][1]


@pytest.mark.slow
def test_the_held_out_loss_is_that_of_the_evaluation_preprocessing(recipe, tmp_path, datasets):
    # Crops of a fifth of the image and flips in training: a validation that used them would have another loss.
    config = dataclasses.replace(
        recipe,
        run=str(tmp_path / "run"),
        data=dataclasses.replace(recipe.data, scale=(0.1, 0.2), hflip=1.0),
        val=dataclasses.replace(recipe.val, batch_size=10, every=0),
        train=dataclasses.replace(recipe.train, steps=3, precision="fp32"),
    )
    result = fit(config)

    model, _, preprocess = create_model_and_transforms("ViT-Ti-4-24", pretrained=result.model)
    tokenizer, dataset, losses = get_tokenizer("ViT-Ti-4-24"), Dataset.open(str(datasets / "val")), []
    rows = [(unit, row) for unit in dataset.units for row in dataset.sidecar(unit).to_pylist()]
    for batch in (rows[:10], rows[10:]):
        images, captions = [], [row["caption"] for _, row in batch]
        for unit, row in batch:
            tar = (datasets / "val" / "shards" / f"{unit.name}.tar").read_bytes()
            data = tar[row["image_offset"] : row["image_offset"] + row["image_length"]]
            images.append(preprocess(Image.open(io.BytesIO(data))))
        with torch.no_grad():
            image, text, scale = model.eval()(torch.stack(images), tokenizer(captions))
        logits, pairs = scale * image @ text.T, torch.arange(10)
        losses.append(float(F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2)
    assert result.val_loss == pytest.approx(sum(losses) / 2, rel=1e-4)


@pytest.mark.slow
def test_held_out_samples_in_the_training_data_are_refused_unless_allowed(recipe, tmp_path, datasets):
    dataset = Dataset.open(str(datasets / "train"))
    if "some" not in dataset.selections():
        select(dataset, SelectConfig(name="some", where="uid_fraction < 0.5"))
    config = dataclasses.replace(
        recipe,
        run=str(tmp_path / "run"),
        val=ValConfig(sources=(Source(dataset=str(datasets / "train"), selection="some"),), batch_size=4),
        train=dataclasses.replace(recipe.train, steps=3),
    )
    total = build_manifest(config.val.sources).samples
    with pytest.raises(ValueError, match=rf"{total} of the {total} samples of val\.sources .* val\.overlap = 'allow'"):
        fit(config)
    assert not (tmp_path / "run").exists()
    allowed = dataclasses.replace(config, val=dataclasses.replace(config.val, overlap="allow"))
    assert allowed.fingerprint() == config.fingerprint()
    assert fit(allowed).val_loss is not None


@pytest.mark.slow
def test_samples_that_changed_under_a_run_are_refused(recipe, tmp_path, datasets):
    shutil.copytree(datasets / "train", tmp_path / "data")
    config = dataclasses.replace(
        recipe,
        run=str(tmp_path / "run"),
        data=dataclasses.replace(recipe.data, sources=(Source(dataset=str(tmp_path / "data")),)),
        train=dataclasses.replace(recipe.train, steps=3),
    )
    fit(config)
    (tmp_path / "run" / "done.json").unlink()
    dataset = Dataset.open(str(tmp_path / "data"))
    gone = dataset.sidecar(dataset.units[0], ["uid"])["uid"][0].as_py().hex()
    dataset.take_down([gone], "asked to")
    with pytest.raises(ValueError, match="manifest"):
        train(config, RunFolder(config))
