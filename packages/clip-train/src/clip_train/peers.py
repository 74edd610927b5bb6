"""Messages between ranks outside of collectives: signs of life, what each rank is doing, and how it ended."""

from __future__ import annotations

import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from clip_train.errors import RankLost
from clip_train.launch import Launch

BEAT_S = 2.0  # seconds between two signs of life
ASKING_S = 8.0  # seconds for a request to the store, which a stopped rank 0 does not answer
SHOWN = 4  # ranks that a message names
_visits = itertools.count()  # a process may join several times, and the store may outlive each of them


class Peers:
    """The ranks at the store of MASTER_ADDR:MASTER_PORT. `where` returns the function that this rank is in."""

    def __init__(self, launch: Launch, timeout: float, where: Callable[[], str]) -> None:
        """Waits up to `timeout` seconds until all ranks have joined. Raises RankLost, which names the missing ones."""
        self._launch, self._where, self._timeout = launch, where, timeout
        self._deadline = time.monotonic() + timeout
        self._prefix = f"clip-train {next(_visits)}"
        self._place = f"MASTER_ADDR:MASTER_PORT = {launch.host}:{launch.port}"
        # Under torchrun the agent keeps the store.
        self.store = self._connect(launch.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True")
        self._over = threading.Event()
        self._beats = self._connect(False)  # its own connection: a rank that waits in the store locks the other one
        self._say(0, "")
        self._thread = threading.Thread(target=self._beat, name="clip-train beat", daemon=True)
        self._thread.start()
        self._wait_for_all()

    def lost(self) -> str:
        """Describes the ranks that do not answer or have ended; empty if there are none."""
        return _shown(self._look()[0])

    def status(self) -> str:
        """Describes the lost ranks, or, if there are none, what each one is doing."""
        lost, well = self._look()
        return _shown(lost or well)

    def connect(self) -> dist.Store:
        """Returns a connection of its own to the store, for another thread. Raises RankLost."""
        return self._connect(False)

    def end(self, how: str) -> None:
        """Tells the other ranks how this rank has ended; `how` is empty for success."""
        self._over.set()
        self._thread.join(1)
        saying = threading.Thread(target=self._say, args=(-1, how), daemon=True)
        saying.start()
        saying.join(1)

    def _connect(self, serve: bool) -> dist.Store:
        launch = self._launch
        while not serve:
            try:
                socket.create_connection((launch.host, launch.port), 2).close()
                break
            except OSError as error:
                if time.monotonic() > self._deadline:
                    raise RankLost(
                        f"rank {launch.rank}: rank 0 has not come to {self._place} within {self._timeout:g} s "
                        f"(train.join_timeout; {error.strerror or error})"
                    ) from error
                time.sleep(0.2)
        try:
            socket.getaddrinfo(launch.host, launch.port)
            store = dist.TCPStore(
                "localhost" if serve else launch.host,
                launch.port,
                is_master=serve,
                timeout=timedelta(seconds=self._timeout),
                wait_for_workers=False,
                multi_tenant=True,
            )
            return dist.PrefixStore(self._prefix, store)
        except (RuntimeError, socket.gaierror) as error:
            reason = "the port is in use" if "EADDRINUSE" in str(error) else str(error).partition("\n")[0]
            raise RankLost(f"rank {launch.rank} cannot meet the others at {self._place}: {reason}") from error

    def _wait_for_all(self) -> None:
        ranks = range(self._launch.size)
        if self.store.add("come", 1) == self._launch.size:
            self.store.set("all", "")
        while not self.store.check(["all"]):
            if time.monotonic() > self._deadline:
                missing = [f"rank {rank}" for rank in ranks if not self.store.check([_key(rank)])]
                raise RankLost(
                    f"rank {self._launch.rank}: of {len(ranks)} ranks, {_shown(missing, ', ')} did not come to "
                    f"{self._place} within {self._timeout:g} s (train.join_timeout)"
                )
            time.sleep(0.1)

    def _beat(self) -> None:
        count = 0
        while not self._over.wait(BEAT_S):
            count += 1
            self._say(count, "")

    def _say(self, count: int, how: str) -> None:
        state = [count, socket.gethostname(), os.getpid(), self._where(), how]
        with suppress(RuntimeError):  # the store is gone
            self._beats.set(_key(self._launch.rank), json.dumps(state))

    def _look(self) -> tuple[list[str], list[str]]:
        """Returns descriptions of (the lost ranks, the other ranks)."""
        looks: list[list[list[Any]]] = []
        asking = threading.Thread(target=self._ask, args=(looks,), daemon=True)
        asking.start()
        asking.join(ASKING_S)
        if len(looks) < 2:
            return [f"rank 0, which keeps the store at {self._place}, does not answer or has ended"], []
        lost, well = [], []
        for rank, (before, after) in enumerate(zip(*looks, strict=True)):
            count, host, process, where, how = after
            name = f"rank {rank} (process {process} on {host})"
            if rank == self._launch.rank or (count < 0 and not how):
                continue
            if count < 0:
                lost.append(f"{name} has ended: {how}")
            elif count == before[0]:
                lost.append(f"{name} does not answer; it was in {where}")
            else:
                well.append(f"{name} is in {where}")
        return lost, well

    def _ask(self, looks: list[list[list[Any]]]) -> None:
        with suppress(RuntimeError, OSError):
            socket.create_connection((self._launch.host, self._launch.port), 2).close()  # fails at once if refused
            store = self._connect(False)
            for pause in (2.5 * BEAT_S, 0):
                looks.append([json.loads(text) for text in store.multi_get(list(map(_key, range(self._launch.size))))])
                time.sleep(pause)


def _key(rank: int) -> str:
    return f"rank {rank}"


def _shown(parts: list[str], between: str = "; ") -> str:
    rest = f"{between}and {len(parts) - SHOWN} more" if len(parts) > SHOWN else ""
    return between.join(parts[:SHOWN]) + rest
