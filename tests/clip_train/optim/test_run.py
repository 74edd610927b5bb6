"""Whole runs: what is averaged, skipped and counted survives a stop to the bit, and is validated and exported."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clip_train import DataConfig, FitConfig, ModelConfig, Source, TrainConfig, ValConfig, fit
from clip_train.errors import Requeue
from clip_train.loop import Loop
from clip_train.optim.config import EmaConfig, OptimConfig, SpikeConfig


def recipe(datasets: Path, run: Path, optim: OptimConfig) -> FitConfig:
    sources = {name: (Source(dataset=str(datasets / name)),) for name in ("train", "val")}
    return FitConfig(
        run=str(run),
        model=ModelConfig(name="ViT-Ti-4-24"),
        data=DataConfig(sources=sources["train"], workers=0),
        val=ValConfig(sources=sources["val"], batch_size=8),
        optim=optim,
        train=TrainConfig(steps=5, batch_size=8, precision="fp32", threads=1, log_every=1, device="cpu"),
    )


def event(run: Path, name: str) -> dict:
    rows = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [row for row in rows if row.get("event") == name][-1]


def saved(run: Path) -> dict[str, torch.Tensor]:
    """The tensors of the last checkpoint."""
    (file,) = (run / "checkpoints/step-00000005").glob("*.safetensors")
    return load_file(file)


@pytest.mark.slow
@pytest.mark.parametrize(
    "optim",
    [
        OptimConfig(ema=EmaConfig(decay=0.9), spike=SpikeConfig(action="skip", window=2, loss=1.01, norm=1.01)),
        OptimConfig(name="adamw-schedulefree", schedule="constant", ema=EmaConfig(decay=0.5, warmup=False)),
        OptimConfig(name="muon", schedule="wsd", warmup="8 samples", cooldown="16 samples", image_layer_decay=0.7),
    ],
    ids=["ema and spikes", "schedule-free", "muon"],
)
def test_a_stopped_run_ends_with_the_bits_of_a_whole_one(datasets, tmp_path, monkeypatch, optim):
    pytest.importorskip("timm")
    pytest.importorskip("schedulefree")
    whole, stopped = tmp_path / "whole", recipe(datasets, tmp_path / "stopped", optim)
    result = fit(dataclasses.replace(stopped, run=str(whole)))
    launch = Loop._launch

    def stopping(loop: Loop, number: int, *rest):
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return launch(loop, number, *rest)

    monkeypatch.setattr(Loop, "_launch", stopping)
    with pytest.raises(Requeue):
        fit(stopped)
    monkeypatch.undo()
    assert fit(stopped).model_sha256 == result.model_sha256
    kept, again = saved(whole), saved(Path(stopped.run))
    parts = {name.partition("/")[0] for name in kept}
    assert ("ema" in parts, "spike" in parts) == (optim.ema.decay > 0, optim.spike.action != "off")
    assert kept.keys() == again.keys()
    assert all(torch.equal(kept[name], again[name]) for name in kept if not name.startswith("rng"))
    validated = event(whole, "validation")
    assert validated == event(Path(stopped.run), "validation")
    exported = load_file(whole / "model.safetensors")
    same = all(torch.equal(tensor, kept[f"model/{name}"]) for name, tensor in exported.items())
    assert same == (not optim.name.endswith("schedulefree"))
    if optim.ema.decay:
        average = load_file(whole / "model-ema.safetensors")
        assert all(
            torch.equal(average[name.removeprefix("ema/")], kept[name]) for name in kept if name.startswith("ema/")
        )
        assert validated["val_loss_ema"] != validated["val_loss"]
    if optim.spike.action != "off":
        rows = map(json.loads, (whole / "log.jsonl").read_text().splitlines())
        assert [row["skipped"] for row in rows if "event" not in row][-1] > 0  # limits that are this low are passed
