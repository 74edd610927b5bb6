"""The local executor: retries after real deaths, errors with the unit named, nothing left behind."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
import types
from pathlib import Path

import pytest

from clip_core import ClipError
from clip_data.dataset import Unit
from clip_data.errors import ClipDataError
from clip_data.executors import ExecutorConfig, make_executor
from clip_data.executors import local as local_executor
from clip_data.executors.local import LocalExecutor
from tests.support.stages import UNITS, Deadly, Failing, fail_untravelled


@pytest.mark.parametrize("workers", [1, 2])
def test_units_run_in_other_processes(tmp_path, workers):
    with make_executor(ExecutorConfig(workers=workers)) as executor:
        answers = dict(executor.run(Deadly(str(tmp_path), 0), UNITS))
    assert {unit: answer["unit"] for unit, answer in answers.items()} == {unit: unit.name for unit in UNITS}
    assert os.getpid() not in {answer["pid"] for answer in answers.values()}
    assert len({answer["pid"] for answer in answers.values()}) <= workers


def test_a_killed_worker_costs_only_its_unit_another_attempt(tmp_path):
    with LocalExecutor(ExecutorConfig(workers=2, retries=2)) as executor:
        answers = dict(executor.run(Deadly(str(tmp_path), 2), UNITS))
    assert sorted(answers, key=lambda unit: unit.ordinal) == UNITS
    assert sorted(mark.name for mark in tmp_path.iterdir()) == sorted(
        [f"{unit.name}-0" for unit in UNITS] + ["00000002-1", "00000002-2"]
    )


def test_a_unit_that_always_kills_is_named_after_the_others_are_done(tmp_path):
    done: list[Unit] = []
    with (
        LocalExecutor(ExecutorConfig(workers=1, retries=1)) as executor,
        pytest.raises(ClipDataError, match=r"unit 00000002 .* killed its worker 2 times.*SIGKILL"),
    ):
        done.extend(unit for unit, _ in executor.run(Deadly(str(tmp_path), 99), UNITS))
    assert sorted(unit.ordinal for unit in done) == [0, 1, 3, 4, 5]
    assert len(list(tmp_path.glob("00000002-*"))) == 2


def test_a_stopped_worker_is_replaced(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(local_executor, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(local_executor, "STOPPED_SECONDS", 0.2)
    with LocalExecutor(ExecutorConfig(workers=2, retries=1)) as local:
        answers = dict(local.run(Deadly(str(tmp_path), 1, signal.SIGSTOP), UNITS))
    assert sorted(answers, key=lambda unit: unit.ordinal) == UNITS
    (warning,) = caplog.messages
    assert "unit 00000002: a stop by a signal; killed" in warning
    assert not _alive(int(warning.split()[2].rstrip(",")))


def test_a_unit_that_takes_too_long_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(local_executor, "POLL_SECONDS", 0.1)
    with (
        LocalExecutor(ExecutorConfig(retries=0, timeout=0.5)) as local,
        pytest.raises(ClipDataError, match=r"unit 00000002 .* 1 times, .* no answer within 0\.5 s \(timeout\)"),
    ):
        list(local.run(Deadly(str(tmp_path), 9, signal.SIGSTOP), UNITS[2:3]))


def test_errors_of_a_task_name_the_unit():
    with LocalExecutor(ExecutorConfig(workers=1)) as executor:
        with pytest.raises(ClipDataError, match="unit 00000001: the list is damaged"):
            list(executor.run(Failing(ClipDataError("the list is damaged")), UNITS))
        with pytest.raises(KeyError) as caught:
            list(executor.run(Failing(KeyError("width")), UNITS))
        assert "unit 00000001" in caught.value.__notes__[0]
        assert "in __call__" in caught.value.__notes__[0]
        with pytest.raises(RuntimeError, match="Untravelled: 3 and 4"):
            list(executor.run(fail_untravelled, UNITS))


def test_no_process_is_left_when_a_run_is_given_up(tmp_path):
    executor = LocalExecutor(ExecutorConfig(workers=2))
    run = executor.run(Deadly(str(tmp_path), 0), UNITS)
    _, answer = next(run)
    run.close()
    assert not _alive(answer["pid"])


DRIVER = """
    import os, re, sys, time
    from clip_data.dataset import Unit
    from clip_data.executors import ExecutorConfig, LocalExecutor

    def hang(unit):
        with open(f"{sys.argv[1]}/{unit.ordinal}", "w") as file:
            file.write(str(os.getpid()))
        os.rename(f"{sys.argv[1]}/{unit.ordinal}", f"{sys.argv[1]}/{unit.ordinal}.pid")
        if unit.ordinal:
            re.match("(a|a)*b", "a" * 64)  # takes for ever, and no other thread of the process runs meanwhile
        time.sleep(120)

    if __name__ == "__main__":
        units = [Unit(ordinal=i, source="", row_group=0, row_start=0, rows=1) for i in range(2)]
        list(LocalExecutor(ExecutorConfig(workers=2)).run(hang, units))
"""


def test_workers_do_not_outlive_a_killed_driver(tmp_path):
    script = tmp_path / "driver.py"
    script.write_text(textwrap.dedent(DRIVER))
    driver = subprocess.Popen([sys.executable, script, tmp_path])
    workers = []
    try:
        _wait_for(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
        workers = [int(file.read_text()) for file in tmp_path.glob("*.pid")]
        assert all(_alive(pid) for pid in workers)
        driver.kill()
        driver.wait()
        _wait_for(lambda: not any(_alive(pid) for pid in workers))
    finally:
        for process in (driver.pid, *workers):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        driver.wait()


DYING_DRIVER = """
    import multiprocessing, os, pathlib, signal, sys
    from clip_data.executors import ExecutorConfig, LocalExecutor
    from tests.support.stages import UNITS, Deadly

    if __name__ == "__main__":
        executor = LocalExecutor(ExecutorConfig(workers=1))
        executor.start(Deadly(sys.argv[1], 0))
        executor.submit(UNITS[0])
        (worker,) = multiprocessing.active_children()
        pathlib.Path(sys.argv[1], "worker").write_text(str(worker.pid))
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_that_starts_after_the_death_of_its_driver_does_not_run_its_unit(tmp_path):
    # The unit is in the pipe by then. Run, it would record what fails because the driver is gone, such as every fetch.
    script = tmp_path / "driver.py"
    script.write_text(textwrap.dedent(DYING_DRIVER))
    root = Path(__file__).parents[3]
    driver = subprocess.run([sys.executable, script, tmp_path], env={**os.environ, "PYTHONPATH": str(root)})
    assert driver.returncode == -signal.SIGKILL
    worker = int((tmp_path / "worker").read_text())
    _wait_for(lambda: not _alive(worker))
    assert not list(tmp_path.glob(f"{UNITS[0].name}-*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": -1}, "workers = -1"),
        ({"retries": -2}, "retries = -2"),
        ({"timeout": 0.0}, "timeout = 0.0"),
        ({"ray_address": "h:1"}, "kind = 'ray'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ClipDataError, match=message):
        ExecutorConfig(**options)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _wait_for(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.05)


def test_an_executor_is_chosen_by_name_or_by_module(monkeypatch):
    module = types.ModuleType("my_executors")
    module.Inline = lambda config: ("inline", config.workers)
    monkeypatch.setitem(sys.modules, "my_executors", module)
    assert isinstance(make_executor(ExecutorConfig(workers=1)), LocalExecutor)
    assert make_executor(ExecutorConfig(kind="my_executors:Inline", workers=3)) == ("inline", 3)
    with pytest.raises(ClipError, match="there is no executor 'rya'; did you mean 'ray'"):
        ExecutorConfig(kind="rya")
    with pytest.raises(ClipError, match="executor 'my_executors:Outline' cannot be imported"):
        make_executor(ExecutorConfig(kind="my_executors:Outline"))
