"""Checkpoints of several ranks: who writes what, other numbers of ranks, other layouts, and ranks that die."""

import json
import os
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel

from clip_train.checkpoints.saver import Checkpoints
from clip_train.checkpoints.state import RunState
from clip_train.errors import ClipTrainError
from clip_train.optim.averages import Ema
from clip_train.optim.build import make_optimizer
from clip_train.optim.config import EmaConfig, OptimConfig
from clip_train.parallel import World, join_world
from tests.support.distributed import run_ranks

ROWS = 10


class Table:
    """A part whose rows each rank holds its share of, as a running value for each sample, beside a count."""

    def __init__(self, world: World) -> None:
        self.rows = torch.zeros(ROWS, 2)
        if world.size > 1:
            mesh = init_device_mesh("cpu", (world.size,))
            share = torch.zeros(ROWS, 2).chunk(world.size)[world.rank]
            self.rows = DTensor.from_local(share, mesh, [Shard(0)], run_check=False, shape=(ROWS, 2), stride=(2, 1))
        self.count = torch.zeros((), dtype=torch.int64)

    def state(self):
        return {"rows": self.rows, "count": self.count}

    def load_state(self, tensors):
        self.rows, self.count = tensors["rows"], tensors["count"]


class Run:
    """A small network under a kind of parallelism, with an average and a part of rows."""

    def __init__(self, folder: str, world: World, kind: str, **options) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3, bias=False))
        self.module: nn.Module = self.model
        if kind == "fsdp":
            mesh = init_device_mesh("cpu", (world.size,))
            fully_shard(self.model[0], mesh=mesh)
            fully_shard(self.model, mesh=mesh)
        elif world.size > 1:
            self.module = DistributedDataParallel(self.model)
        self.optimizer = make_optimizer(self.model, OptimConfig(lr=0.1))
        self.ema, self.table = Ema(self.model, EmaConfig(decay=0.5)), Table(world)
        state = RunState(model=self.model, optimizer=self.optimizer, parts={"ema": self.ema, "rows": self.table})
        self.checkpoints = Checkpoints(folder, world, state, **{"keep": 9, "fingerprint": "one", **options})

    def train(self, step: int) -> None:
        self.module(torch.linspace(-1, 1, 20).view(4, 5) + step).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(step)
        with torch.no_grad():
            self.table.rows += step
            self.table.count += 1

    def values(self) -> dict[str, list[float]]:
        """All values, whole, as lists."""
        found = {f"model {name}": tensor for name, tensor in self.model.state_dict().items()}
        found |= {f"ema {name}": tensor for name, tensor in self.ema.state().items()}
        found |= {f"rows {name}": tensor for name, tensor in self.table.state().items()}
        for name, parameter in self.model.named_parameters():
            found |= {f"{name} {key}": value for key, value in self.optimizer.state[parameter].items()}
        whole = {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in found.items()}
        return {name: value.flatten().tolist() for name, value in whole.items()}


def save(folder: str, kind: str) -> dict[str, list[float]]:
    with join_world("cpu") as world:
        run = Run(folder, world, kind)
        for step in (1, 2):
            run.train(step)
        run.checkpoints.save(2, {"step": 2}, {})
        run.train(3)  # while it is written
        run.checkpoints.wait()
        again = Run(folder, world, kind)
        assert again.checkpoints.resume().step == 2
        return again.values()


def load(folder: str, kind: str) -> tuple[dict[str, list[float]], list[str]]:
    opened: list[str] = []
    with join_world("cpu") as world:
        run = Run(folder, world, kind)
        store = run.checkpoints.folder.store
        store.open, whole = lambda name: opened.append(Path(name).name) or whole(name), store.open
        assert run.checkpoints.resume().step == 2
        return run.values(), opened


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, tuple[Path, dict[str, list[float]]]]:
    """A checkpoint of two ranks by kind, with its values."""
    found = {}
    for kind in ("ddp", "fsdp"):
        folder = tmp_path_factory.mktemp(kind)
        first, second = run_ranks(2, save, str(folder), kind)
        assert first == second
        found[kind] = (folder, first)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("before", ["ddp", "fsdp"])
@pytest.mark.parametrize(("ranks", "after"), [(1, "ddp"), (2, "ddp"), (2, "fsdp"), (4, "fsdp")])
def test_it_is_read_to_the_bit_on_other_numbers_of_ranks_and_in_other_layouts(saved, before, ranks, after):
    folder, wanted = saved[before]
    for found, _ in run_ranks(ranks, load, str(folder), after):
        assert found == wanted


@pytest.mark.slow
def test_the_ranks_share_what_is_replicated_and_each_file_is_read_once(saved):
    folder, _ = saved["ddp"]
    step = folder / "checkpoints" / "step-00000002"
    sizes = [path.stat().st_size for path in sorted(step.glob("*.safetensors"))]
    assert len(sizes) == 2
    assert max(sizes) < 0.7 * sum(sizes)
    for ranks in (1, 2, 4):
        opened = [name for _, names in run_ranks(ranks, load, str(folder), "ddp") for name in names]
        assert sorted(opened) == sorted(path.name for path in step.glob("*.safetensors"))


@pytest.mark.slow
def test_a_file_that_one_rank_finds_damaged_sends_all_to_the_one_before(saved, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(saved["fsdp"][0], folder)
    newest = folder / "checkpoints" / "step-00000004"
    shutil.copytree(folder / "checkpoints" / "step-00000002", newest)
    state = json.loads((newest / "state.json").read_text())
    state["step"] = 4
    from clip_train.checkpoints.layout import digest_of

    (newest / "state.json").write_text(json.dumps({**state, "sha256": digest_of(state)}))
    last = sorted(newest.glob("*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:-1] + b"x")
    for found, _ in run_ranks(2, load, str(folder), "fsdp"):
        assert found == saved["fsdp"][1]
    assert [path.name[:13] for path in (folder / "checkpoints").glob("damaged-*")] == ["damaged-step-"]


def save_in_vain(folder: str) -> str:
    import resource

    with join_world("cpu") as world:
        run = Run(folder, world, "ddp")
        run.train(1)
        run.checkpoints.save(1, {}, {})
        run.checkpoints.wait()
        if world.rank == 1:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        run.checkpoints.save(2, {}, {})
        try:
            run.checkpoints.wait()
        except ClipTrainError as error:
            return str(error)
        return "saved"


@pytest.mark.slow
def test_a_rank_whose_disk_is_full_ends_all_with_the_same_line(tmp_path):
    first, second = run_ranks(2, save_in_vain, str(tmp_path))
    assert first == second
    assert "cannot save a checkpoint" in first
    assert "File too large" in first
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def die_in_a_save(folder: str, victim: int) -> None:
    with suppress(Exception), join_world("cpu") as world:
        run = Run(folder, world, "fsdp")
        run.train(1)
        run.checkpoints.save(1, {}, {})
        run.checkpoints.wait()
        run.train(2)
        if world.rank == victim:
            store = run.checkpoints.folder.store
            store.publish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        run.checkpoints.save(2, {}, {})
        time.sleep(1)
        os._exit(0)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_in_a_save_leaves_the_checkpoint_before(tmp_path, victim):
    with suppress(AssertionError, EOFError):
        run_ranks(2, die_in_a_save, str(tmp_path), victim)
    left = {path.name for path in (tmp_path / "checkpoints" / "step-00000002").iterdir()}
    assert "state.json" not in left
    assert any(name.startswith(".tmp-") for name in left)
    world = World(0, 1, torch.device("cpu"))
    run = Run(str(tmp_path), world, "alone")
    assert run.checkpoints.resume().step == 1
    run.train(2)
    run.checkpoints.save(2, {}, {})
    run.checkpoints.wait()
    assert len(list((tmp_path / "checkpoints" / "step-00000002").iterdir())) == 3
