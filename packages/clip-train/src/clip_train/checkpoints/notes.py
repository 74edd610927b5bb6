"""Notes that the ranks leave for each other in the store of the process group, outside of collectives.

A save in the background agrees through them: collectives would have to come in the same order on all ranks as those of
training, and would hang with a rank that is gone.
"""

from __future__ import annotations

import json
import time
from typing import Any

from clip_train.errors import ClipTrainError
from clip_train.parallel import World

_PAUSE_S = 0.02


class Notes:
    """Notes of the ranks, JSON values by topic. Used by one thread at a time."""

    def __init__(self, world: World, timeout: float) -> None:
        self._world, self._timeout = world, timeout
        self._store = world.peers.connect() if world.peers else None

    def collect(self, topic: str, value: Any) -> list[Any]:
        """Leaves a note of this rank. Returns those of all ranks on rank 0, in rank order, and [] on the others."""
        if self._store is None:
            return [value]
        self._store.set(f"{topic} {self._world.rank}", json.dumps(value))
        if not self._world.leads:
            return []
        keys = [f"{topic} {rank}" for rank in range(self._world.size)]
        self._wait(keys)
        values = [json.loads(text) for text in self._store.multi_get(keys)]
        for key in keys:
            self._store.delete_key(key)
        return values

    def tell(self, topic: str, value: Any) -> None:
        """Leaves a note of rank 0 for all others."""
        if self._store is not None:
            self._store.set(topic, json.dumps(value))

    def hear(self, topic: str) -> Any:
        """Waits for the note that rank 0 leaves by `tell`."""
        assert self._store is not None
        self._wait([topic])
        return json.loads(self._store.get(topic))

    def _wait(self, keys: list[str]) -> None:
        assert self._store is not None
        until = time.monotonic() + self._timeout
        while not self._store.check(keys):
            if time.monotonic() > until:
                ranks = [key.rsplit(" ", 1)[-1] for key in keys if not self._store.check([key])]
                raise ClipTrainError(
                    f"of {self._world.size} ranks, {', '.join(ranks[:4])} did not finish a save within "
                    f"{self._timeout:g} s (checkpoint.timeout)"
                )
            time.sleep(_PAUSE_S)
