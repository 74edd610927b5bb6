"""What holds for all tests."""

import gc


def pytest_collection_finish() -> None:
    """The libraries are there to stay: looking through them at every collection costs a seventh of the parity tests."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()
