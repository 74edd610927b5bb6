"""The Ray executor: plain tasks with a bounded number in flight. Only this module of the package imports Ray."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Before the import: no telemetry, and workers use this environment instead of a new one from `uv run`.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

import ray
from ray.exceptions import RayError

from clip_data.dataset import Unit
from clip_data.errors import ClipDataError
from clip_data.executors.base import Executor, ExecutorConfig, Outcome, Task, attempt

CONNECT_SECONDS = 120.0  # for Ray to start here, or to join a cluster that has answered
GREETING_SECONDS = 10.0  # for a Ray node to answer a new connection
HTTP2_SETTINGS = b"\x04"  # type of the first frame that either side sends; it follows 3 bytes of length
HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + HTTP2_SETTINGS + bytes(5)
SHOWN = 3  # units that a message names
IN_FLIGHT_PER_CPU = 2  # so that no CPU waits for the driver


class RayExecutor(Executor):
    """Runs units as Ray tasks of one CPU each.

    Uses the Ray that this process is connected to; otherwise connects, and disconnects at `close`.
    """

    def __init__(self, config: ExecutorConfig) -> None:
        super().__init__(config)
        self._own = not ray.is_initialized()
        if self._own:
            _connect(config)
        cpus = int(ray.cluster_resources().get("CPU", 0))
        self.window = config.workers or IN_FLIGHT_PER_CPU * max(cpus, 1)
        self._flying: dict[ray.ObjectRef[Any], Unit] = {}

    def start(self, task: Task) -> None:
        # No retries by Ray: the driver's loop counts deaths, and tries a unit again after the others.
        name = getattr(task, "name", type(task).__name__)
        self._remote = ray.remote(attempt).options(num_cpus=1, max_retries=0, name=name)
        self._task = ray.put(task)

    def submit(self, unit: Unit) -> None:
        self._flying[self._remote.remote(self._task, unit)] = unit

    def collect(self) -> Iterator[tuple[Unit, Outcome]]:
        ready, _ = ray.wait(list(self._flying), num_returns=1, timeout=self.config.timeout)
        if not ready:
            names = ", ".join(unit.name for unit in list(self._flying.values())[:SHOWN])
            late = f"within {self.config.timeout:g} s (timeout) none of {len(self._flying)} units was done ({names}, …)"
            raise ClipDataError(f"{late}: look at the cluster's tasks, and run again")
        for reference in ready:
            unit = self._flying.pop(reference)
            try:
                yield unit, ray.get(reference)
            except RayError as error:
                yield unit, Outcome(death=_first_line(error))

    def stop(self) -> None:
        for reference in self._flying:
            ray.cancel(reference, force=True)
        self._flying = {}

    def close(self) -> None:
        super().close()
        if self._own and ray.is_initialized():
            ray.shutdown()


def _connect(config: ExecutorConfig) -> None:
    address = config.ray_address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"logging_level": "warning"}
    if address == "local":
        options |= {"num_cpus": config.workers or None, "include_dashboard": False}
    try:
        if address not in ("local", "auto"):
            _greet(address.removeprefix("ray://"))
        with _deadline(CONNECT_SECONDS):
            ray.init(address, **options)
    except (OSError, RuntimeError, ValueError, ImportError, RayError) as error:
        raise ClipDataError(
            f"cannot connect to the Ray cluster at {address}: {_first_line(error)}; check that it runs, and set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to those of its nodes"
        ) from error


def _greet(address: str) -> None:
    """Raises OSError or ValueError unless a gRPC server, as Ray's nodes have, answers at host:port.

    `ray.init` itself waits for 15 minutes if nothing listens, and without end for a server of another kind.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError("an address is host:port, as in 10.0.0.1:6379")
    with socket.create_connection((host.strip("[]"), int(port)), GREETING_SECONDS) as connection:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return  # encrypted: only the connection is checked
        connection.sendall(HTTP2_GREETING)
        if connection.makefile("rb").read(4)[3:] != HTTP2_SETTINGS:
            raise ConnectionError("the server there is not a Ray node")


class _LateError(BaseException):
    """The time of a `_deadline` has passed."""


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raises TimeoutError if the block takes longer, since a server that greets may not answer a call.

    It works in the main thread, which receives signals; in another thread the block has no limit.
    """

    def late(*_: object) -> None:
        raise _LateError  # not an Exception, which `ray.init` would catch

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _LateError:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
