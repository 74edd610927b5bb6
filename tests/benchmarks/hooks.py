"""What hooks and the log cost: their share of the CPU time of training; and what a run of one step takes.

    uv run tests/benchmarks/hooks.py --model ViT-S-32 --batch-size 64 --steps 40

CPU time of the main thread, which other processes on the machine do not change; synthetic data of one process. The
checkpoints and the validation of a run are not among the hooks here. Then the time of a new process
that does one step, with its start and its end, by the clock.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from clip_train import DataConfig, FitConfig, ModelConfig, TrainConfig, fit, trainer
from clip_train.config import CheckpointConfig
from clip_train.hooks import Logging, Saving
from clip_train.optim.config import EmaConfig, OptimConfig
from clip_train.synthetic import SyntheticConfig


class Timed:
    """A hook whose CPU time is added up, by the name of its class."""

    def __init__(self, hook: Any, spent: dict[str, float]) -> None:
        self._hook, self._spent = hook, spent

    def __getattr__(self, name: str) -> Any:
        act = getattr(self._hook, name)

        def timed(*args: Any) -> Any:
            began = time.thread_time()
            try:
                return act(*args)
            finally:
                key = type(self._hook).__name__
                self._spent[key] = self._spent.get(key, 0.0) + time.thread_time() - began

        return timed


def config_of(args: argparse.Namespace, folder: str) -> FitConfig:
    return FitConfig(
        run=f"{folder}/run",
        model=ModelConfig(name=args.model),
        data=DataConfig(synthetic=SyntheticConfig(samples=100_000), workers=0),
        optim=OptimConfig(ema=EmaConfig(decay=0.999) if args.ema else EmaConfig()),
        train=TrainConfig(
            steps=args.steps, batch_size=args.batch_size, precision="fp32", threads=1, log_every=args.log_every
        ),
        checkpoint=CheckpointConfig(every=10**9),
    )


def overhead(args: argparse.Namespace) -> None:
    spent: dict[str, float] = {}
    made = trainer._hooks
    trainer._hooks = lambda *given, **shared: [
        hook if isinstance(hook, Saving) else Timed(hook, spent) for hook in made(*given, **shared)
    ]
    marks: list[float] = []
    start, settle = Logging.on_start, Logging.on_step

    def on_start(self: Logging, loop: Any) -> None:
        start(self, loop)
        marks.append(time.thread_time())

    def on_step(self: Logging, loop: Any, step: Any) -> None:
        settle(self, loop, step)
        marks.append(time.thread_time())

    Logging.on_start, Logging.on_step = on_start, on_step  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        fit(config_of(args, folder))
    total = marks[-1] - marks[0]
    print(f"{args.steps} steps of {args.model} at batch {args.batch_size}: {total / args.steps * 1000:.1f} ms each")
    for name, seconds in spent.items():
        print(f"  {name:14} {seconds / args.steps * 1000:8.3f} ms a step  {seconds / total:7.3%}")
    print(f"  {'together':14} {'':19}{sum(spent.values()) / total:8.3%}")


def one_step() -> None:
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.toml"
        recipe.write_text(
            f"run = {json.dumps(folder + '/run')}\nmodel.name = 'ViT-Ti-4-24'\n"
            "data = { synthetic = { samples = 1000 }, workers = 0 }\n"
            "train = { steps = 1, batch_size = 32, precision = 'fp32', threads = 1 }\n"
        )
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "clip_train", "fit", str(recipe)], check=True, capture_output=True)
        whole = time.perf_counter() - began
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        busy = used.ru_utime + used.ru_stime
        rows = [json.loads(line) for line in (Path(folder) / "run" / "log.jsonl").read_text().splitlines()]
        print(
            f"a run of one step: {whole:.2f} s by the clock ({busy:.2f} s of CPU), {rows[1]['time_s']:.2f} s the step"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-Ti-4-24")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--log-every", type=int, default=10)
    parser.add_argument("--ema", action="store_true")
    args = parser.parse_args()
    overhead(args)
    one_step()


if __name__ == "__main__":
    main()
