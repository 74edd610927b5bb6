"""Checkpoints of several ranks: who writes what, other numbers of ranks, other layouts, and ranks that die."""

import json
import os
import resource
import shutil
import signal
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel

from clip_train.checkpoints.layout import digest_of
from clip_train.checkpoints.saver import Checkpoints
from clip_train.checkpoints.state import RunState
from clip_train.errors import ClipTrainError
from clip_train.optim.averages import Ema
from clip_train.optim.build import make_optimizer
from clip_train.optim.config import EmaConfig, OptimConfig
from clip_train.parallel import World, join_world
from tests.support.distributed import run_ranks

ROWS = 10
KINDS = ("ddp", "fsdp")


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


def save(folder: str, world: World, kind: str) -> dict[str, list[float]]:
    run = Run(folder, world, kind)
    for step in (1, 2):
        run.train(step)
    wanted = run.values()
    run.checkpoints.save(2, {"step": 2}, {})
    run.train(3)  # while it is written
    run.checkpoints.wait()
    return wanted


def load(folder: str, world: World, kind: str) -> tuple[dict[str, list[float]], list[str]]:
    """Returns (values, names of the files that this rank has read)."""
    opened: list[str] = []
    run = Run(folder, world, kind)
    store = run.checkpoints.folder.store
    store.open, whole = lambda name: opened.append(Path(name).name) or whole(name), store.open
    assert run.checkpoints.resume().step == 2
    return run.values(), opened


def save_in_vain(folder: str, world: World) -> str:
    """Saves on two ranks, one of which has a full disk. Returns the message."""
    run = Run(folder, world, "ddp")
    run.train(1)
    run.checkpoints.save(1, {}, {})
    run.checkpoints.wait()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if world.rank == 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    run.checkpoints.save(2, {}, {})
    try:
        run.checkpoints.wait()
    except ClipTrainError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return "saved"


def on_two(root: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with join_world("cpu") as world:
        for kind in KINDS:
            found["saved", kind] = save(f"{root}/{kind}", world, kind)
        for before, after in product(KINDS, KINDS):
            found[before, after] = load(f"{root}/{before}", world, after)
        if world.leads:
            damaged_copy(Path(root, "fsdp"), Path(root, "damaged"))
        world.gather(None)
        found["damaged"] = load(f"{root}/damaged", world, "fsdp")
        found["full"] = save_in_vain(f"{root}/full", world)
    return found


def on_four(root: str) -> dict[str, Any]:
    with join_world("cpu") as world:
        return {(before, after): load(f"{root}/{before}", world, after) for before, after in product(KINDS, KINDS)}


def damaged_copy(folder: Path, copy: Path) -> None:
    """Copies a run with step 2, and adds a step 4 whose last file is damaged."""
    shutil.copytree(folder, copy)
    newest = copy / "checkpoints" / "step-00000004"
    shutil.copytree(copy / "checkpoints" / "step-00000002", newest)
    state = {**json.loads((newest / "state.json").read_text()), "step": 4}
    (newest / "state.json").write_text(json.dumps({**state, "sha256": digest_of(state)}))
    last = sorted(newest.glob("*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:-1] + b"x")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def two(root) -> list[dict[str, Any]]:
    return run_ranks(2, on_two, str(root))


@pytest.mark.slow
def test_two_ranks_read_what_they_saved_to_the_bit_in_each_layout(two):
    for rank in two:
        for before, after in product(KINDS, KINDS):
            assert rank[before, after][0] == two[0]["saved", before]


@pytest.mark.slow
def test_one_and_four_ranks_read_what_two_saved_to_the_bit(root, two):
    ranks = run_ranks(4, on_four, str(root))
    for before in KINDS:
        wanted = two[0]["saved", before]
        assert load(str(root / before), World(0, 1, torch.device("cpu")), "ddp")[0] == wanted
        for rank, after in product(ranks, KINDS):
            assert rank[before, after][0] == wanted
        names = sorted(path.name for path in (root / before / "checkpoints" / "step-00000002").glob("*.safetensors"))
        assert len(names) == 2
        for after in KINDS:
            for some in (two, ranks):
                assert sorted(name for rank in some for name in rank[before, after][1]) == names  # each is read once


@pytest.mark.slow
def test_the_ranks_share_what_is_replicated(root, two):
    for kind in KINDS:
        files = (root / kind / "checkpoints" / "step-00000002").glob("*.safetensors")
        sizes = [path.stat().st_size for path in files]
        assert max(sizes) < 0.7 * sum(sizes)


@pytest.mark.slow
def test_a_file_that_one_rank_finds_damaged_sends_all_to_the_one_before(root, two):
    for rank in two:
        assert rank["damaged"][0] == two[0]["saved", "fsdp"]
    assert len(list((root / "damaged" / "checkpoints").glob("damaged-step-00000004-*"))) == 1


@pytest.mark.slow
def test_a_rank_whose_disk_is_full_ends_all_with_the_same_line(root, two):
    assert two[0]["full"] == two[1]["full"]
    assert "cannot save a checkpoint" in two[0]["full"]
    assert "File too large" in two[0]["full"]
    assert [path.name for path in (root / "full" / "checkpoints").iterdir()] == ["step-00000001"]


def die_in_a_save(folder: str) -> None:
    with suppress(Exception), join_world("cpu") as world:
        run = Run(folder, world, "fsdp")
        run.train(1)
        run.checkpoints.save(1, {}, {})
        run.checkpoints.wait()
        run.train(2)
        if world.rank == 1:
            store = run.checkpoints.folder.store
            store.publish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        run.checkpoints.save(2, {}, {})
        run.checkpoints.settle(1)
        os._exit(0)


@pytest.mark.slow
def test_a_rank_that_is_killed_in_a_save_leaves_the_checkpoint_before(tmp_path):
    with suppress(AssertionError, EOFError):
        run_ranks(2, die_in_a_save, str(tmp_path))
    left = {path.name for path in (tmp_path / "checkpoints" / "step-00000002").iterdir()}
    assert "state.json" not in left
    assert any(name.startswith(".tmp-") for name in left)
    run = Run(str(tmp_path), World(0, 1, torch.device("cpu")), "ddp")
    assert run.checkpoints.resume().step == 1
    run.train(2)
    run.checkpoints.save(2, {}, {})
    run.checkpoints.wait()
    assert len(list((tmp_path / "checkpoints" / "step-00000002").iterdir())) == 3
