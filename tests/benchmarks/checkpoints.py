"""Time, size and stall of checkpoints, from 10 million to 1 billion parameters, in real files.

    uv run tests/benchmarks/checkpoints.py [--millions 10 100 1000] [--optimizer sgd] [--folder DIR] [--json FILE]

A network of linear layers trains with AdamW: a checkpoint holds three numbers for each parameter, or with SGD one, for
1 billion parameters in 20 GB of memory. `step_s` is the median step without a save. `save_s` is from the start of a
save to its commit while training goes on, `stall_s` how long training stood still for it, `stall_steps` that in steps,
for the second save, whose memory exists. `load_s` reads the checkpoint, verified, into a new network.
"""

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from clip_train.checkpoints.saver import Checkpoints
from clip_train.checkpoints.state import RunState
from clip_train.parallel import World

HERE = World(0, 1, torch.device("cpu"))


class Run:
    def __init__(self, folder: Path, millions: int, width: int, optimizer: str) -> None:
        layers = max(1, round(millions * 1e6 / width**2))
        self.model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
        kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[optimizer]
        self.optimizer = kind(self.model.parameters(), lr=1e-4, fused=True)
        state = RunState(model=self.model, optimizer=self.optimizer)
        self.checkpoints = Checkpoints(folder, HERE, state, keep=1, fingerprint="benchmark")

    def step(self, batch: torch.Tensor) -> float:
        began = time.perf_counter()
        self.model(batch).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - began


def measure(folder: Path, millions: int, width: int, rows: int, optimizer: str) -> dict[str, float]:
    shutil.rmtree(folder, ignore_errors=True)
    run, batch = Run(folder, millions, width, optimizer), torch.randn(rows, width)
    steps = [run.step(batch) for _ in range(4)][1:]
    for number in (1, 2):
        run.checkpoints.save(number, {}, {})
        while not (saved := run.checkpoints.finished()):
            run.step(batch)
    run.checkpoints.wait()
    again = Run(folder, millions, width, optimizer)
    began = time.perf_counter()
    again.checkpoints.resume()
    load_s = time.perf_counter() - began
    step_s, last = statistics.median(steps), saved[0]
    shutil.rmtree(folder)
    return {
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "bytes": last.bytes,
        "step_s": round(step_s, 3),
        "save_s": round(last.seconds, 3),
        "stall_s": round(last.stall_s, 3),
        "stall_steps": round(last.stall_s / step_s, 3),
        "load_s": round(load_s, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("checkpoint-benchmark"))
    parser.add_argument("--millions", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=256, help="rows of a batch")
    parser.add_argument("--optimizer", choices=["adamw", "sgd"], default="adamw")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for millions in options.millions:
        rows.append(measure(options.folder, millions, options.width, options.rows, options.optimizer))
        print(json.dumps(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
