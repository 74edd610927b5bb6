"""The Ray executor on one local cluster: the same answers, errors and retries as the local one."""

import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from clip_data.dataset import Unit
from clip_data.errors import ClipDataError
from clip_data.executors import ExecutorConfig, LocalExecutor, make_executor
from clip_data.stage import run_stage
from tests.support.pipeline import free_port
from tests.support.stages import UNITS, Copy, Deadly, Failing, folder_bytes, planned

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def executor():
    with make_executor(ExecutorConfig(kind="ray", workers=2, retries=2)) as executor:
        yield executor


def test_a_killed_worker_costs_only_its_unit_another_attempt(tmp_path, executor):
    answers = dict(executor.run(Deadly(str(tmp_path), 1), UNITS))
    assert sorted(answers, key=lambda unit: unit.ordinal) == UNITS
    assert len(list(tmp_path.glob("00000002-*"))) == 2


def test_a_unit_that_always_kills_is_named_after_the_others_are_done(tmp_path, executor):
    with pytest.raises(ClipDataError, match=r"unit 00000002 .* killed its worker 3 times"):
        list(executor.run(Deadly(str(tmp_path), 99), UNITS))
    assert len(list(tmp_path.glob("*-0"))) == len(UNITS)
    assert len(list(tmp_path.glob("00000002-*"))) == 3


def test_errors_of_a_task_name_the_unit(executor):
    with pytest.raises(ClipDataError, match="unit 00000001: the list is damaged"):
        list(executor.run(Failing(ClipDataError("the list is damaged")), UNITS))
    with pytest.raises(KeyError) as caught:
        list(executor.run(Failing(KeyError("width")), UNITS))
    assert "unit 00000001" in caught.value.__notes__[0]


def test_ray_and_local_processes_make_the_same_folder(tmp_path, executor):
    ray, local = planned(tmp_path / "ray"), planned(tmp_path / "local")
    counts = run_stage(ray, Copy(ray.url), executor, progress=False)
    with LocalExecutor(ExecutorConfig(workers=2)) as processes:
        assert run_stage(local, Copy(local.url), processes, progress=False) == counts
    seconds = re.compile(rb'"seconds": [0-9.e-]+')
    folders = [
        {name: seconds.sub(b"", data) for name, data in folder_bytes(tmp_path / kind).items()}
        for kind in ("ray", "local")
    ]
    assert folders[0] == folders[1]


@dataclass(frozen=True)
class Flight:
    """Answers with how many tasks had started when it ended."""

    folder: str

    def __call__(self, unit: Unit) -> dict:
        (Path(self.folder) / unit.name).touch()
        time.sleep(0.2)
        return {"started": len(list(Path(self.folder).iterdir()))}


def test_no_more_units_are_under_way_than_workers(tmp_path, executor):
    units = [Unit(ordinal=i, source="", row_group=0, row_start=0, rows=1) for i in range(8)]
    started = [answer["started"] for _, answer in executor.run(Flight(str(tmp_path)), units)]
    assert max(count - done for done, count in enumerate(started)) <= 3  # two, and the one that follows a finished one


@contextmanager
def listening(answer: bytes) -> Iterator[int]:
    """A port on which a server sends some bytes to whoever connects, and then waits."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    held.append(connection)
                    connection.sendall(answer)

        held: list[socket.socket] = []
        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        for connection in held:
            connection.close()


@pytest.mark.parametrize("prefix", ["", "ray://"])
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "not a Ray node"),
        (b"", "timed out"),
        ("refused", "refused"),
    ],
)
def test_a_wrong_address_is_an_error_in_time(monkeypatch, prefix, answer, reason):
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr("clip_data.executors.ray.GREETING_SECONDS", 0.5)
    with nullcontext(free_port()) if answer == "refused" else listening(answer) as port:
        address = f"{prefix}127.0.0.1:{port}"
        started = time.monotonic()
        with pytest.raises(ClipDataError, match=f"Ray cluster at {address}: .*{reason}.*RAY_AUTH_TOKEN") as caught:
            make_executor(ExecutorConfig(kind="ray", ray_address=address))
    assert time.monotonic() - started < 20
    assert "\n" not in str(caught.value)


def test_ray_does_not_catch_its_deadline(monkeypatch):
    """`ray.init` tries a node that does not answer twenty times, whatever is raised meanwhile."""
    import ray

    def insist(address, **options):
        for _ in range(200):
            with suppress(Exception):
                time.sleep(0.1)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", insist)
    monkeypatch.setattr("clip_data.executors.ray.CONNECT_SECONDS", 0.3)
    with pytest.raises(ClipDataError, match=r"Ray cluster at local: TimeoutError: no answer within 0\.3 s"):
        make_executor(ExecutorConfig(kind="ray", ray_address="local"))
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


@pytest.mark.parametrize("address", ["head", "127.0.0.1:", "127.0.0.1:port", ":6379"])
def test_what_is_no_address_is_refused(monkeypatch, address):
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ClipDataError, match=f"Ray cluster at {address}: .*host:port"):
        make_executor(ExecutorConfig(kind="ray", ray_address=address))


def test_an_error_of_ray_s_own_is_one_line(monkeypatch, executor):
    """The greeting goes to the cluster that runs; what Ray says after it is made up."""
    import ray

    def refuse(address, **options):
        raise ConnectionError(f"Failed to connect to Ray cluster at {address}\nfor reasons of its own")

    address = ray.get_runtime_context().gcs_address
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ClipDataError, match=rf"Ray cluster at {address}: ConnectionError: Failed.*RAY_AUTH_TOKEN"):
        make_executor(ExecutorConfig(kind="ray", ray_address=address))
