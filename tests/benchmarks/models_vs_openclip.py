"""Import, creation, forward and forward+backward beside OpenCLIP's: the same weights, the same input, one process,
rounds by turns, medians.

    uv run tests/benchmarks/models_vs_openclip.py [--quick] [--json FILE]
    uv run tests/benchmarks/models_vs_openclip.py --device cuda

On a CPU: the towers of ViT-B-32 and RN50 at batch 32; on an accelerator ViT-L-14 at batch 256, with the peak memory
above the weights. The longest caption of `text` has the whole context, that of `text-20` 20 tokens in as many columns.
fp32 and bf16 are the precision of the weights and the input; amp is bf16 autocast over fp32 weights.
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

IMPORTS = {
    "import torch": "import torch",
    "import clip_models": "import clip_models",
    "… and create_model": "import clip_models; clip_models.create_model",
    "import open_clip": "import open_clip",
}


@dataclass(frozen=True)
class Row:
    what: str
    open_clip: float
    """Seconds."""
    clip_models: float
    open_clip_mb: float = 0.0
    """Peak memory above what was there before the call; on an accelerator only."""
    clip_models_mb: float = 0.0

    def __str__(self) -> str:
        ratio = self.open_clip / self.clip_models
        line = f"{self.what:<44}{1000 * self.open_clip:>12.1f}{1000 * self.clip_models:>12.1f}{ratio:>8.2f}"
        return line + (f"{self.open_clip_mb:>12.0f}{self.clip_models_mb:>12.0f}" if self.open_clip_mb else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--towers", nargs="+", help="MODEL/image, MODEL/text, MODEL/text-20 or MODEL/both")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16", "amp"])
    parser.add_argument("--modes", nargs="+", choices=["eval", "train"], default=["eval", "train"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--no-start", action="store_true", help="leave out import and creation")
    parser.add_argument("--quick", action="store_true", help="one round at batch 2: whether it runs")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    on_cpu = args.device == "cpu"
    towers = ["ViT-B-32/image", "RN50/image", "ViT-B-32/text", "ViT-B-32/text-20"]
    towers = args.towers or (towers if on_cpu else ["ViT-L-14/image", "ViT-L-14/text", "ViT-L-14/both"])
    precisions = args.precisions or (["fp32", "bf16", "amp"] if on_cpu else ["bf16", "amp"])
    batch = args.batch or (2 if args.quick else 32 if on_cpu else 256)
    rounds = 1 if args.quick else args.rounds

    import torch

    logging.disable(logging.WARNING)  # OpenCLIP warns that random weights are random
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else args.device
    print(f"{device}, {torch.get_num_threads()} threads, batch {batch}, torch {torch.__version__}, {rounds} rounds")
    print(f"{'':<44}{'OpenCLIP ms':>12}{'ours ms':>12}{'ratio':>8}" + ("" if on_cpu else f"{'MB':>12}{'MB':>12}"))
    rows: list[Row] = []

    def add(row: Row) -> None:
        rows.append(row)
        print(row, flush=True)

    seconds = {} if args.no_start else import_seconds(rounds)
    for what, value in seconds.items():
        print(f"{what:<44}{1000 * value:>12.1f}")
    if not args.no_start:
        add(creation(rounds))
    for tower in towers:
        for precision in precisions:
            for row in measure(tower, precision, args.modes, batch, args.device, rounds):
                add(row)
    if args.json:
        environment = {"device": device, "threads": torch.get_num_threads(), "batch": batch, "rounds": rounds}
        rows_json = [asdict(row) for row in rows]
        args.json.write_text(json.dumps({**environment, "imports_s": seconds, "rows": rows_json}, indent=1))


def import_seconds(rounds: int) -> dict[str, float]:
    """Medians of fresh processes; the first round, which fills the file cache, does not count."""
    seconds: dict[str, list[float]] = {what: [] for what in IMPORTS}
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
    for _ in range(rounds + 1):
        for what, statement in IMPORTS.items():
            code = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
            if done.returncode:
                sys.exit(done.stderr)
            seconds[what].append(float(done.stdout.split()[-1]))
    return {what: statistics.median(values[1:]) for what, values in seconds.items()}


def creation(rounds: int) -> Row:
    import open_clip

    import clip_models

    calls = [lambda: open_clip.create_model("ViT-B-32"), lambda: clip_models.create_model("ViT-B-32")]
    return Row("create_model ViT-B-32", *by_turns(calls, rounds, "cpu"))


def measure(tower: str, precision: str, modes: list[str], batch: int, device: str, rounds: int) -> list[Row]:
    """Rows of one tower in one precision: each mode, forward without gradients and forward+backward with them."""
    import open_clip
    import torch

    import clip_models

    name, part = tower.split("/")
    ours = clip_models.create_model(name)
    theirs = open_clip.create_model(name)
    theirs.load_state_dict(ours.state_dict())
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    models = [model.to(device, dtype) for model in (theirs, ours)]
    image = torch.randn(batch, 3, *ours.spec.preprocess.size, device=device, dtype=dtype)
    text = captions(batch, ours.context_length, 20 if part == "text-20" else ours.context_length).to(device)

    def call(model: torch.nn.Module, gradients: bool) -> Callable[[], None]:
        def run() -> None:
            model.zero_grad(set_to_none=True)
            autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "amp")
            with torch.set_grad_enabled(gradients), autocast:
                outputs = []
                if part in ("image", "both"):
                    outputs.append(model.encode_image(image, normalize=True))
                if part != "image":
                    outputs.append(model.encode_text(text, normalize=True))
                loss = (outputs[0].float() @ outputs[-1].float().T).logsumexp(dim=1).sum()
            if gradients:
                loss.backward()

        return run

    rows = []
    for mode in modes:
        for model in models:
            model.train(mode == "train")
        for gradients in (False, True):
            calls = [call(model, gradients) for model in models]
            what = f"{tower} {precision} {mode} {'forward+backward' if gradients else 'forward'}"
            times = by_turns(calls, rounds, device)
            rows.append(Row(what, *times, *(peak_mb(run, device) for run in calls)))
    return rows


def captions(count: int, context: int, longest: int):
    """int64 [count, context]: start, random tokens, end, zeros; lengths up to `longest`, which one row has."""
    import torch

    generator = torch.Generator().manual_seed(0)
    text = torch.zeros(count, context, dtype=torch.int64)
    for row in range(count):
        length = longest if row == 0 else int(torch.randint(5, longest + 1, (1,), generator=generator))
        text[row, :length] = torch.randint(1, 49405, (length,), generator=generator)
        text[row, 0], text[row, length - 1] = 49406, 49407
    return text


def by_turns(calls: list[Callable], rounds: int, device: str) -> list[float]:
    """Median seconds of each call; they run by turns, after a first run that does not count."""
    import torch

    seconds: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds + 1):
        order = list(zip(calls, seconds, strict=True))
        for call, times in order if turn % 2 else reversed(order):
            if device != "cpu":
                torch.accelerator.synchronize()
            start = time.perf_counter()
            call()
            if device != "cpu":
                torch.accelerator.synchronize()
            times.append(time.perf_counter() - start)
    return [statistics.median(times[1:]) for times in seconds]


def peak_mb(call: Callable, device: str) -> float:
    import torch

    if not device.startswith("cuda"):
        return 0.0
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


if __name__ == "__main__":
    main()
