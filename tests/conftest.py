"""What holds for all tests: processes, which are slow, in which order files run, and the garbage collector."""

import gc
import os
from pathlib import Path

import pytest

# Before torch is imported. The tests run in more processes than there are cores: threads beside them wait for each
# other, which takes 40 % more CPU time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
SLOW_FOLDERS = {"parity", "integration", "faults"}


def pytest_xdist_auto_num_workers() -> int:
    """Returns one more than the cores: tests of faults and waits mostly wait."""
    return min(8, (os.cpu_count() or 1) + 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks all tests of the slow folders, and runs files with slow tests first: the last ones to end are short."""
    here = Path(__file__).parent
    for item in items:
        if SLOW_FOLDERS.intersection(item.path.relative_to(here).parts):
            item.add_marker("slow")
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Keeps the collector off the libraries: looking through them each time costs a seventh of the parity tests."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()
