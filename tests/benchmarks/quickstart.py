"""Measures the quickstart: wall time, peak memory of the whole process tree, and zero-shot accuracy per seed.

    uv run tests/benchmarks/quickstart.py --seeds 0 1 2

Memory is the proportional set size (shared pages counted once) summed over the tree, sampled every half second. Linux.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def tree_bytes(root: int) -> int:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    total, todo = 0, [root]
    while todo:
        pid = todo.pop()
        todo += children.get(pid, [])
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += 1024 * int(re.search(r"^Pss:\s+(\d+) kB", rollup, re.M).group(1))
    return total


def measure(seed: int, output: Path) -> dict:
    command = [sys.executable, str(ROOT / "pipelines/end_to_end.py"), "--output", str(output)]
    command += [f"--{field}={seed}" for field in ("input.seed", "fit.train.seed")]
    start, peak = time.monotonic(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, tree_bytes(process.pid))
        time.sleep(0.5)
    assert process.returncode == 0, f"the quickstart failed with exit code {process.returncode}"
    rows = [json.loads(line) for line in (output / "eval/results.jsonl").read_text().splitlines()]
    (top1,) = [row for row in rows if row["benchmark"] == "objects" and row["metric"] == "top1"]
    return {
        "seed": seed,
        "wall_s": time.monotonic() - start,
        "peak_gb": peak / 1e9,
        "top1": top1["value"],
        "interval": [top1["low"], top1["high"]],
        "n": top1["n"],
        "stages_s": json.loads((output / "timings.json").read_text()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    for seed in parser.parse_args().seeds:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(seed, Path(folder) / "run")), flush=True)


if __name__ == "__main__":
    main()
