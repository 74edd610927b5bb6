"""A run folder in an object store: a real S3 server in another process."""

import dataclasses
import json
import time

import pytest

from clip_core.store import Store
from clip_train import (
    CheckpointConfig,
    DataConfig,
    FitConfig,
    ModelConfig,
    OptimConfig,
    Source,
    TrainConfig,
    fit,
    lease,
)
from clip_train.checkpoints.layout import Folder
from clip_train.commands.export import Config as Export
from clip_train.commands.export import run as export
from clip_train.errors import ClipTrainError
from tests.support.s3 import s3_bucket
from tests.support.trainer import start, wait_for


@pytest.fixture
def bucket(monkeypatch):
    """A bucket of an S3 server of its own process."""
    with s3_bucket() as settings:
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        yield "s3://bucket"


@pytest.mark.slow
def test_a_run_in_an_object_store_goes_on_after_a_kill_with_the_same_bits(bucket, datasets, tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "EXPIRED_S", 2.0)
    config = FitConfig(
        run=f"{bucket}/runs/first",
        model=ModelConfig(name="ViT-Ti-4-24"),
        data=DataConfig(sources=(Source(dataset=str(datasets / "train")),), workers=0),
        optim=OptimConfig(lr=1e-3, warmup=1),
        train=TrainConfig(steps=5, batch_size=8, precision="fp32", threads=1, log_every=1, device="cpu"),
        checkpoint=CheckpointConfig(every=2),
    )
    folder, store = Folder(config.run), Store(config.run)
    process = start(config, tmp_path)
    wait_for(folder.steps, process, 240)
    process.kill()
    process.wait()

    result = fit(config)
    whole = fit(dataclasses.replace(config, run=str(tmp_path / "local")))
    assert (result.loss, result.model_sha256) == (whole.loss, whole.model_sha256)
    assert result.model == f"{config.run}/model.safetensors"
    rows = [json.loads(line) for line in store.read_bytes("log.jsonl").splitlines()]
    assert [row["step"] for row in rows if "event" not in row] == [1, 2, 3, 4, 5]
    assert folder.steps() == [4, 5]
    assert not store.exists(lease.NAME)
    assert store.list("tensorboard")
    assert fit(config) == result

    store.write_bytes(store.list(f"checkpoints/step-{5:08d}")[0], b"damaged")
    store.remove("done.json")
    assert fit(config).model_sha256 == whole.model_sha256
    assert [name for name in store.list("checkpoints") if name.startswith("checkpoints/damaged-step-00000005-")]

    export(Export(run=f"{config.run}@4", output=f"{config.run}/four.safetensors"))
    assert store.exists("four.safetensors")


def test_a_lease_keeps_others_out_and_one_without_signs_of_life_expires(monkeypatch):
    monkeypatch.setattr(lease, "EXPIRED_S", 0.6)
    monkeypatch.setattr(lease, "RENEWED_S", 0.1)
    store = Store("memory://lease-of-a-run")
    monkeypatch.setattr(lease.socket, "gethostname", lambda: "one")
    with lease.locked(store):
        monkeypatch.setattr(lease.socket, "gethostname", lambda: "two")
        with pytest.raises(ClipTrainError, match=r"another process is training in memory.*\(process \d+ on one\)"):
            lease.locked(store).__enter__()
    assert not store.exists(lease.NAME)
    store.write_json(lease.NAME, {"holder": "x", "host": "one", "process": 1, "beat": 3})
    with lease.locked(store):
        assert store.read_json(lease.NAME)["host"] == "two"
    store.write_json(lease.NAME, {"holder": "x", "host": "two", "process": 2**22 + 1, "beat": 3})
    began = time.monotonic()
    with lease.locked(store):  # of this host, and not running
        assert time.monotonic() - began < 0.5
