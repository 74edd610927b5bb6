"""What a training run leaves in its folder."""

import json
from dataclasses import dataclass
from typing import Any

from clip_core.store import Store
from clip_eval.errors import ClipEvalError


@dataclass(frozen=True, kw_only=True)
class Run:
    """The log and the state of a training run."""

    name: str
    """Its folder."""
    steps: list[dict[str, Any]]
    """The log's lines with a loss, one per step, ascending."""
    validation: list[dict[str, Any]]
    """The log's lines with a held-out loss, one per step, ascending."""
    config: dict[str, Any]
    """config.json, or empty."""
    done: dict[str, Any]
    """done.json, or empty while the run goes on."""


def read_run(folder: str) -> Run | None:
    """Reads the run in a folder. Returns None if it has no log yet. Ignores a last line that a kill has cut off."""
    store = Store(folder)
    if not store.exists("log.jsonl"):
        return None
    steps: dict[int, dict[str, Any]] = {}
    validation: dict[int, dict[str, Any]] = {}
    text = store.read_bytes("log.jsonl")
    for line in text[: text.rfind(b"\n") + 1].splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ClipEvalError(f"{folder}/log.jsonl is damaged: not JSON ({error}): {line[:80]!r}") from error
        if "val_loss" in row:  # the later line wins: a step is repeated after a resume
            validation[row["step"]] = row
        elif "loss" in row and "event" not in row:
            steps[row["step"]] = row
    if not steps:
        return None
    return Run(
        name=folder,
        steps=[steps[step] for step in sorted(steps)],
        validation=[validation[step] for step in sorted(validation)],
        config=store.read_json("config.json") if store.exists("config.json") else {},
        done=store.read_json("done.json") if store.exists("done.json") else {},
    )
