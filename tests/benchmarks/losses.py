"""Time and memory of the losses beside OpenCLIP's.

    uv run tests/benchmarks/losses.py [shape | ranks] [--json FILE]

shape: one rank's part of a large run, 2,048 pairs of 32,768, width 512, by the formula of OpenCLIP's local loss with
gathered gradients and by ours; the other 15 ranks are simulated by their features. ranks: forward and backward on 1 to
4 gloo processes of one thread, the same samples per rank. Memory, of
shape alone, is what the resident set of a fresh process grows above its size before the call.
"""

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor

from clip_train.losses import contrastive
from clip_train.losses.contrastive import contrastive_loss
from clip_train.losses.exchange import Exchange
from clip_train.losses.sigmoid import sigmoid_loss
from clip_train.parallel import World, join_world

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.support import dense_losses as dense
from tests.support.distributed import run_ranks

RANKS, LOCAL, WIDTH = 16, 2048, 512
Loss = Callable[[Tensor, Tensor, Tensor, Tensor, World], Tensor]

OURS: dict[str, Loss] = {
    "ours, contrastive": lambda x, y, s, b, w: contrastive_loss(x, y, s, ranks=w.size),
    "ours, contrastive, bf16 logits": lambda x, y, s, b, w: contrastive_loss(x, y, s, ranks=w.size, logits="bf16"),
    "ours, sigmoid, ring": lambda x, y, s, b, w: sigmoid_loss(x, y, s, b, ranks=w.size),
    "ours, sigmoid, gather": lambda x, y, s, b, w: sigmoid_loss(x, y, s, b, ranks=w.size, exchange="gather"),
}


def open_clip_contrastive(local_loss: bool, gather_with_grad: bool) -> Loss:
    return lambda x, y, s, b, w: ClipLoss(local_loss, gather_with_grad, rank=w.rank, world_size=w.size)(x, y, s)


def open_clip_sigmoid(way: str) -> Loss:
    return lambda x, y, s, b, w: SigLipLoss(rank=w.rank, world_size=w.size, dist_impl=way)(x, y, s, b)


OPEN_CLIP = {
    f"OpenCLIP, contrastive, local_loss={local:d}, gather_with_grad={grad:d}": open_clip_contrastive(local, grad)
    for local in (False, True)
    for grad in (False, True)
} | {f"OpenCLIP, sigmoid, {way}": open_clip_sigmoid(way) for way in ("bidir", "shift", "reduce", "gather")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="by default all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.rounds} rounds")
    rows = {part: PARTS[part](args.rounds) for part in args.parts or PARTS}
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


class Simulated(Exchange):
    """Rank 0 of 16: what it receives is there already, and what it sends goes nowhere."""

    rank = 0
    text_ND: Tensor

    def gather(self, local: Tensor) -> Tensor:
        return self.text_ND[: self.ranks * len(local)].clone() if local.ndim == 2 else local.repeat(self.ranks)

    def scatter(self, whole: Tensor) -> Tensor:
        return whole[: len(whole) // self.ranks].clone()

    def sum(self, value: Tensor) -> Tensor:
        return value

    max = sum


def shape_calls(local: int) -> dict[str, Callable[[], None]]:
    """OpenCLIP's formula and ours for one rank of 16; ours no longer talks to other ranks afterwards."""
    x_ND, y_ND = dense.features(RANKS * local, WIDTH)
    leaves = [t.clone().requires_grad_() for t in (x_ND[:local], y_ND[:local], torch.tensor(20.0), torch.tensor(-10.0))]
    contrastive.Exchange, Simulated.text_ND = Simulated, y_ND

    def dense_local() -> None:
        x, y, scale, _ = leaves
        every_x, every_y = (whole.clone().requires_grad_() for whole in (x_ND, y_ND))
        labels = torch.arange(local)
        images, texts = F.cross_entropy(scale * x @ every_y.T, labels), F.cross_entropy(scale * y @ every_x.T, labels)
        ((images + texts) / 2).backward()

    def ours(name: str) -> Callable[[], None]:
        return lambda: OURS[name](*leaves, World(0, RANKS, torch.device("cpu"))).backward()

    names = "ours, contrastive", "ours, contrastive, bf16 logits"
    return {"OpenCLIP's formula, local_loss=1, gather_with_grad=1": dense_local} | {name: ours(name) for name in names}


def shape_seconds(rounds: int) -> dict[str, tuple[float, float]]:
    return by_turns(shape_calls(LOCAL), rounds)


def shape_peak(name: str) -> float:
    shape_calls(64)[name]()  # so that libraries have set themselves up
    return peak_mb(shape_calls(LOCAL)[name])


def shape(rounds: int) -> list[dict]:
    """Times by turns in one process; the peak of each call in a process of its own."""
    print(f"\n{LOCAL} of {RANKS * LOCAL} pairs, width {WIDTH}: seconds, share of the first, CPU seconds, share, MB")
    rows: list[dict] = []
    for name, (seconds, cpu) in in_new_process(shape_seconds, rounds).items():
        first = rows[0] if rows else {"s": seconds, "cpu_s": cpu}
        shares = {"share": seconds / first["s"], "cpu_share": cpu / first["cpu_s"]}
        rows.append({"what": name, "s": seconds, "cpu_s": cpu, **shares, "mb": in_new_process(shape_peak, name)})
        print("{what:<58}{s:>8.2f}{share:>6.2f}{cpu_s:>8.2f}{cpu_share:>6.2f}{mb:>7.0f}".format(**rows[-1]), flush=True)
    return rows


def in_new_process(function: Callable[..., Any], *args: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def ranks(rounds: int, local: int = 1024) -> list[dict]:
    print(f"\nforward and backward, {local} pairs per rank, width {WIDTH}, one thread per rank")
    rows = []
    for size in (1, 2, 3, 4):
        results = run_ranks(size, time_on_this_rank, local, rounds)
        for name, seconds in results[0].items():
            rows.append({"what": name, "ranks": size, "s": seconds})
            print("{ranks} {what:<58}{s:>8.3f} s".format(**rows[-1]), flush=True)
    return rows


def time_on_this_rank(local: int, rounds: int) -> dict[str, tuple[float, float]]:
    losses = OURS | {
        name: OPEN_CLIP[name] for name in list(OPEN_CLIP) if "1, gather_with_grad=1" in name or "bidir" in name
    }
    with join_world("cpu") as world:
        x, y = dense.features(local, WIDTH, seed=world.rank)
        leaves = [t.requires_grad_() for t in (x, y, torch.tensor(20.0), torch.tensor(-10.0))]
        calls = {name: lambda loss=loss: loss(*leaves, world).backward() for name, loss in losses.items()}
        return {name: wall for name, (wall, _) in by_turns(calls, rounds).items()}


def by_turns(calls: dict[str, Callable[[], None]], rounds: int) -> dict[str, tuple[float, float]]:
    """Least seconds, and least seconds of the CPU, of each call; they run by turns, after a run that does not count."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            start, cpu = time.perf_counter(), time.process_time()
            call()
            times[name].append((time.perf_counter() - start, time.process_time() - cpu))
    return {name: (min(t[0] for t in each[1:]), min(t[1] for t in each[1:])) for name, each in times.items()}


def peak_mb(call: Callable[[], None]) -> float:
    """What the resident set grows above its size before the call, which the kernel keeps the peak of."""

    def resident(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key))

    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    call()
    return (resident("VmHWM") - before) * 1024 / 1e6


PARTS = {"shape": shape, "ranks": ranks}

if __name__ == "__main__":
    main()
