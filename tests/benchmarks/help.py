"""Time to the help text of every command: the median of ten runs with a warm file cache.

uv run tests/benchmarks/help.py
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

BIN = Path(sys.executable).parent
COMMANDS = [
    ["clip-data"],
    *(["clip-data", name] for name in ("plan", "acquire", "score", "select", "status", "verify")),
    ["clip-models"],
    *(["clip-models", name] for name in ("list", "profile", "embed", "classify", "export", "push")),
    ["clip-train"],
    ["clip-train", "fit"],
    ["clip-eval"],
    *(["clip-eval", name] for name in ("run", "report")),
]


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([BIN / command[0], *command[1:], "--help"], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def main() -> None:
    for command in COMMANDS:
        seconds(command)
        times = [seconds(command) for _ in range(10)]
        print(f"{' '.join(command) + ' --help':<26} {statistics.median(times):.2f} s (worst {max(times):.2f} s)")


if __name__ == "__main__":
    main()
