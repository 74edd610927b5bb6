"""Saves checkpoints of a run in the background, and resumes from the newest intact one."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from clip_core import ClipError
from clip_core.console import warn
from clip_train.checkpoints.layout import Damaged, Folder, Pieces, name_of
from clip_train.checkpoints.notes import Notes
from clip_train.checkpoints.planning import SavePlans
from clip_train.checkpoints.reading import fill
from clip_train.checkpoints.state import RunState
from clip_train.checkpoints.writing import Stage
from clip_train.errors import ClipTrainError
from clip_train.parallel import World


@dataclass(frozen=True)
class Resumed:
    """The contents of a checkpoint without the tensors."""

    step: int
    stream: dict[str, Any]
    metrics: dict[str, float]
    damaged: tuple[dict[str, str], ...] = ()
    """newer checkpoints that were damaged and set aside: folder, checkpoint, reason"""


@dataclass(frozen=True)
class Saved:
    """A finished save."""

    step: int
    seconds: float
    """from its start to its commit"""
    stall_s: float
    """seconds that training stood still for it on rank 0, also for the end of the save before"""
    bytes: int


class Checkpoints:
    """The checkpoints of a run folder. All methods are called on every rank, `finished` excepted.

    `save` copies this rank's share to host memory and returns; a thread writes it. The save is complete when rank 0 has
    written state.json, after all ranks have written their files. `fingerprint` identifies the run's config, and
    `about` is further JSON for state.json.
    """

    def __init__(
        self,
        run: str | os.PathLike[str],
        world: World,
        state: RunState,
        *,
        keep: int,
        fingerprint: str,
        keep_every: int = 0,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = Folder(run)
        self._run, self._world, self.state = run, world, state
        self._keep, self._keep_every, self._fingerprint = keep, keep_every, fingerprint
        self._about = dict(about or {})
        self._plans, self._stage = SavePlans(world), Stage()
        self._notes: Notes | None = None
        self._visit = world.lead(lambda: uuid.uuid4().hex[:8])
        self._thread: threading.Thread | None = None
        self._last = -1
        self._failure = ""
        self._finished: list[Saved] = []

    def finished(self) -> list[Saved]:
        """Returns the saves that have finished since the last call."""
        done, self._finished = self._finished, []
        return done

    def save(
        self,
        step: int,
        stream: Mapping[str, Any],
        metrics: Mapping[str, float],
        *,
        pinned: bool = False,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """Starts to save the state after `step` steps; waits for the save before, whose failure it raises.

        A `pinned` checkpoint is never removed. Rank 0 calls `before` in the background, before the commit.
        """
        if step == self._last:
            return  # a signal arrived in a step that is saved anyway
        began = time.perf_counter()
        self.wait()
        tensors = self.state.tensors(self._world)
        planned = self._plans.plan(tensors)
        self._stage.copy(planned.plan, tensors)
        described = {
            **self._about,
            "config": self._fingerprint,
            "stream": dict(stream),
            "metrics": dict(metrics),
            "ranks": self._world.size,
            "pinned": pinned,
        }
        stall = time.perf_counter() - began
        self._last = step
        self._thread = threading.Thread(
            target=self._write, args=(step, planned.table, described, before, began, stall), name="save", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Waits for the save in the background. Raises ClipTrainError on all ranks if it has failed on one."""
        if self._thread is not None:
            with self._world.watch.storing():
                self._thread.join()
            self._thread = None
        self.check()

    def settle(self, seconds: float) -> None:
        """Gives a save in the background some time to finish. Raises nothing, and waits for no other rank."""
        if self._thread is not None:
            self._thread.join(seconds)

    def check(self) -> None:
        """Raises ClipTrainError on all ranks if a save has failed on one."""
        failures = [failure for failure in self._world.gather(self._failure) if failure]
        if failures:
            raise ClipTrainError(f"cannot save a checkpoint in {self.folder.store.url}: {failures[0]}")

    def _write(
        self,
        step: int,
        table: Mapping[str, Pieces],
        described: Mapping[str, Any],
        before: Callable[[], None],
        began: float,
        stall: float,
    ) -> None:
        """Runs in the background: writes this rank's file and takes part in the commit."""
        try:
            topic = f"save {self._visit} {step}"
            if self._notes is None:
                self._notes = Notes(self._world, self._world.watch.storage)
            own, failure = self._write_own(step)
            notes = self._notes.collect(f"{topic} written", {"file": own, "failure": failure})
            if self._world.leads:
                size, failure = self._commit(step, table, described, notes, before)
                self._notes.tell(f"{topic} committed", failure)
                if not failure:
                    self._finished.append(Saved(step, time.perf_counter() - began, stall, size))
            else:
                failure = self._notes.hear(f"{topic} committed")
            if not failure:
                self._world.watch.saved = step
            self._fail(failure)
        except Exception as error:  # the main thread raises it
            self._fail(_line(error))

    def _fail(self, failure: str) -> None:
        self._failure = failure
        if failure:
            self._world.watch.wanted = True  # the ranks agree on a step to stop at, where `check` raises it

    def _write_own(self, step: int) -> tuple[dict[str, Any], str]:
        """Returns (the entries of this rank's file in state.json, what went wrong)."""
        name = f"{self._world.rank:05d}-of-{self._world.size:05d}.{self._visit}.safetensors"
        try:
            return {name: self._stage.write(self.folder.store, f"{name_of(step)}/{name}")}, ""
        except (ClipError, OSError) as error:
            return {}, _line(error)

    def _commit(
        self,
        step: int,
        table: Mapping[str, Pieces],
        described: Mapping[str, Any],
        notes: list[dict[str, Any]],
        before: Callable[[], None],
    ) -> tuple[int, str]:
        """Returns (the size of the checkpoint in bytes, what went wrong)."""
        failure = next((note["failure"] for note in notes if note["failure"]), "")
        try:
            if not failure:
                before()
                files = {name: entry for note in notes for name, entry in note["file"].items()}
                size = self.folder.commit(step, table, files, described)
                self.folder.tidy(step, keep=self._keep, keep_every=self._keep_every)
                return size, ""
        except Exception as error:  # of whatever kind, the other ranks wait for the news
            failure = _line(error)
        if step not in self.folder.steps():
            self.folder.remove(step)  # makes room for other files
        return 0, failure

    def resume(self) -> Resumed | None:
        """Loads the newest intact checkpoint and sets newer, damaged ones aside. Returns None without a checkpoint.

        Raises ClipTrainError if all are damaged, or if the newest intact one belongs to another config.
        """
        damaged: list[tuple[int, str]] = []
        for step in reversed(self._world.lead(self.folder.steps)):
            try:
                state = self._load(step)
            except Damaged as error:
                damaged.append((step, str(error)))
                continue
            moved = self._world.lead(lambda: [self._set_aside(*each, step) for each in damaged])  # noqa: B023 -- now
            self._last = step
            return Resumed(step, state["stream"], state["metrics"], tuple(moved))
        if damaged:
            step, reason = damaged[0]
            raise ClipTrainError(
                f"no checkpoint in {self.folder.store.url} is intact; the newest, {name_of(step)}, is damaged: "
                f"{reason}. Put an intact copy in its place, or remove {self._run} to start the run again"
            )
        return None

    def _load(self, step: int) -> dict[str, Any]:
        """Loads a checkpoint. Raises Damaged, and ClipTrainError if it is not this run's."""
        found = self._world.lead(lambda: read_description(self.folder, step))
        if isinstance(found, str):
            raise Damaged(found)
        state, table = found
        where = self.folder.where(step)
        if state["config"] != self._fingerprint:
            raise ClipTrainError(
                f"the checkpoint {where} belongs to another config ({state['config']}): use another run folder"
            )
        load_state(self.state, self.folder, state, table, self._world)
        return state

    def load_from(self, folder: Folder, step: int) -> dict[str, Any]:
        """Loads a checkpoint of another run. A part that it does not have begins anew. Raises Damaged."""
        found = self._world.lead(lambda: read_description(folder, step))
        if isinstance(found, str):
            raise Damaged(found)
        state, table = found
        load_state(replace(self.state, partial=True), folder, state, table, self._world)
        return state

    def _set_aside(self, step: int, reason: str, instead: int) -> dict[str, str]:
        where = self.folder.where(step)
        try:
            aside = self.folder.set_aside(step)
        except ClipError as error:
            raise ClipTrainError(
                f"the checkpoint {where} is damaged ({reason}) and cannot be moved: {error}"
            ) from error
        name = aside.rsplit("/", 1)[-1]
        warn(
            f"the checkpoint {where} is damaged: {reason}; it is now {name}, and the run continues from step {instead}"
        )
        return {"folder": aside, "checkpoint": name_of(step), "reason": reason}


def read_description(folder: Folder, step: int) -> tuple[dict[str, Any], dict[str, Pieces]] | str:
    """Returns (state.json, the table of the tensors) of a checkpoint, or what is wrong with it."""
    try:
        state = folder.read_state(step)
        return state, folder.read_tensors(state)
    except Damaged as error:
        return str(error)


def load_state(
    run: RunState, folder: Folder, state: Mapping[str, Any], table: Mapping[str, Pieces], world: World
) -> None:
    """Restores a run's state from a checkpoint. Raises Damaged, and ClipTrainError for one of another model."""
    try:
        targets = run.targets(table, world)
    except ClipTrainError as error:
        raise ClipTrainError(f"{folder.where(state['step'])}: {error}") from error
    fill(targets, folder, state, table, world)
    run.load(targets, world)


def _line(error: BaseException) -> str:
    """Returns an error as one line."""
    return " ".join(str(error).split()) or type(error).__name__
