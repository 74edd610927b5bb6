"""How time, memory and traffic of the contrastive loss grow with the number of ranks, for the same batch on each rank.

    uv run tests/benchmarks/growth.py [--ranks 1 2 3 4] [--batch 1024] [--width 512] [--json FILE]

Real processes on gloo. `cpu_s` is the processor time of one rank for the loss, forward and backward (median of the
repetitions, the largest of all ranks): the ranks of this machine share its cores, so wall time says nothing. `peak_mb`
is the memory that the loss adds to a process, `expected_mb` what packages/clip-train/docs/scaling.md gives for it.
Checkpoints grow with the parameters: tests/benchmarks/checkpoints.py.
"""

import argparse
import json
import resource
import statistics
import time
from pathlib import Path

import torch

from clip_train.losses.contrastive import contrastive_loss
from clip_train.losses.tiles import TILE_ELEMENTS
from clip_train.parallel import join_world
from tests.support.distributed import run_ranks

REPEATS = 5


def peak() -> int:
    """Most bytes of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(ranks: int, batch: int, width: int) -> dict[str, float]:
    with join_world("cpu") as world:
        torch.manual_seed(world.rank)
        image, text = (torch.nn.functional.normalize(torch.randn(batch, width), dim=1) for _ in range(2))
        scale, times = torch.tensor(14.3), []
        for _ in range(REPEATS + 1):  # the first one is left out
            inputs = [tensor.detach().requires_grad_() for tensor in (image, text, scale)]
            began = time.process_time()
            contrastive_loss(*inputs, ranks=ranks).backward()
            times.append(time.process_time() - began)
        return {"cpu": statistics.median(times[1:]), "peak": peak()}


def resting(batch: int, width: int) -> int:
    """Bytes of a rank that has the features and has computed a loss of few samples."""
    with join_world("cpu"):
        image, text = (torch.nn.functional.normalize(torch.randn(batch, width), dim=1) for _ in range(2))
        few = [tensor[:8].clone().requires_grad_() for tensor in (image, text)]
        contrastive_loss(*few, torch.tensor(14.3)).backward()
        return peak()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--batch", type=int, default=1024, help="samples of each rank")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for ranks in options.ranks:
        base = max(run_ranks(ranks, resting, options.batch, options.width))
        found = run_ranks(ranks, measure, ranks, options.batch, options.width)
        samples = ranks * options.batch
        expected = 4 * (2 * samples * options.width + 3 * options.batch * options.width + 8 * samples)
        row = {
            "ranks": ranks,
            "samples": samples,
            "cpu_s": round(max(each["cpu"] for each in found), 4),
            "gflop": round(8 * options.batch * samples * options.width / 1e9, 1),
            "peak_mb": round((max(each["peak"] for each in found) - base) / 1e6, 1),
            "expected_mb": round((expected + 3 * 4 * TILE_ELEMENTS["cpu"]) / 1e6, 1),
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
