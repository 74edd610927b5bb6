"""The command `clip-data`. Each sub-command takes a stage's own config, the folder, and the executor to run on."""

from __future__ import annotations

import difflib
import json
import os
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from clip_data.config import parse, run_cli
from clip_data.dataset import SUCCESS, Dataset
from clip_data.errors import ClipDataError
from clip_data.executor import ExecutorConfig, make_executor

C = TypeVar("C")


@dataclass(frozen=True, kw_only=True)
class Folder:
    """The dataset that a command works on."""

    root: str
    """folder of the dataset: a path or an fsspec URL"""


@dataclass(frozen=True, kw_only=True)
class FolderAndExecutor(Folder):
    """The dataset that a stage works on, and where its units run."""

    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    """where the units run"""


@dataclass(frozen=True, kw_only=True)
class Score(FolderAndExecutor):
    """Which columns are added."""

    scorers: tuple[str, ...] = ()
    """names of the scorers; empty: all there are"""


@dataclass(frozen=True, kw_only=True)
class Status(Folder):
    """How the state is shown."""

    json: bool = False
    """print JSON instead of a table"""


@dataclass(frozen=True, kw_only=True)
class Verify(Folder):
    """What is checked."""

    deep: bool = False
    """read every byte: hashes, tar members, ids, rows of columns and selections"""


def main(args: Sequence[str] | None = None) -> None:
    """The entry point; exits with 0, or with 2 after one line that says what is wrong."""
    run_cli(lambda: _main(sys.argv[1:] if args is None else list(args)))


def _main(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(_overview())
        return 0
    name = args[0]
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"the commands are {', '.join(COMMANDS)}"
        raise ClipDataError(f"clip-data has no command {name!r}; {hint}")
    return COMMANDS[name][0](args[1:])


def _overview() -> str:
    return "\n".join(
        [
            "usage: clip-data COMMAND [recipe.toml] [--flags]",
            "",
            "From tables of URLs to shards, scores and selections. A command that is run again continues.",
            "",
            *(f"  {name:<9} {text}" for name, (_, text) in COMMANDS.items()),
            "",
            "'clip-data COMMAND --help' lists the flags of a command.",
        ]
    )


def _parse(command: str, form: type[C], args: Sequence[str]) -> C:
    """The command line in the given form, its folder made absolute: workers may run in another folder."""
    parsed: Any = parse(form, args, prog=f"clip-data {command}", description=COMMANDS[command][1])
    if parsed.root and "://" not in parsed.root:
        object.__setattr__(parsed, "root", os.path.abspath(os.path.expanduser(parsed.root)))
    return parsed


def _form(config: type, *parts: type) -> type:
    """A dataclass with the fields of a stage's config and of the parts."""
    return dataclass(frozen=True, kw_only=True)(types.new_class(config.__name__, (*parts, config)))


def _pick(config: type[C], parsed: Any) -> C:
    return config(**{f.name: getattr(parsed, f.name) for f in fields(config)})  # type: ignore[arg-type]


def _say(what: str, counts: Mapping[str, int]) -> None:
    rows = sum(counts.values())
    reasons = ", ".join(f"{code} {count:,}" for code, count in counts.items() if code != SUCCESS)
    share = f"{counts[SUCCESS] / rows:.1%}"
    print(f"{what}: {counts[SUCCESS]:,} of {rows:,} rows ({share})" + (f"; rejected: {reasons}" if reasons else ""))


def _plan(args: Sequence[str]) -> int:
    from clip_data.plan import PlanConfig, plan

    parsed: Any = _parse("plan", _form(PlanConfig, Folder), args)
    dataset = plan(parsed.root, _pick(PlanConfig, parsed))
    print(f"plan: {sum(unit.rows for unit in dataset.units):,} rows in {len(dataset.units):,} units in {parsed.root}")
    return 0


def _acquire(args: Sequence[str]) -> int:
    from clip_data.acquire import AcquireConfig

    parsed: Any = _parse("acquire", _form(AcquireConfig, FolderAndExecutor), args)
    from clip_data.acquire import AcquireTask  # numpy, pyarrow and aiohttp, which --help does without
    from clip_data.run import run_stage

    config = _pick(AcquireConfig, parsed)
    dataset = Dataset.open(parsed.root)
    with make_executor(parsed.executor) as executor:
        task = AcquireTask(parsed.root, config)
        _say("acquire", run_stage(dataset, "acquire", config.settings(), task, executor))
    return 0


def _score(args: Sequence[str]) -> int:
    parsed = _parse("score", Score, args)
    from clip_data.run import run_stage
    from clip_data.score import SCORERS, ScoreTask

    dataset = Dataset.open(parsed.root)
    tasks = [ScoreTask(parsed.root, name) for name in parsed.scorers or SCORERS]
    with make_executor(parsed.executor) as executor:
        for task in tasks:
            _say(task.stage, run_stage(dataset, task.stage, task.config, task, executor))
    return 0


def _select(args: Sequence[str]) -> int:
    from clip_data.select import SelectConfig

    parsed: Any = _parse("select", _form(SelectConfig, Folder), args)
    from clip_data.select import select
    from clip_data.status import format_selection

    made = select(Dataset.open(parsed.root), _pick(SelectConfig, parsed))
    print(f"selection {parsed.name}: {format_selection({**made, 'dropped': dict(made['counts'])})}")
    return 0


def _status(args: Sequence[str]) -> int:
    parsed = _parse("status", Status, args)
    from clip_data.status import format_status, status

    state = status(parsed.root)
    print(json.dumps(state, indent=1) if parsed.json else format_status(state))
    return 0


def _verify(args: Sequence[str]) -> int:
    parsed = _parse("verify", Verify, args)
    from clip_data.verify import verify

    problems = verify(parsed.root, parsed.deep, progress=sys.stderr.isatty())
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print(f"{parsed.root}: no problems" + ("" if parsed.deep else " (sizes only; --deep reads every byte)"))
    return 2 if problems else 0


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "plan": (_plan, "cut tables of URLs into units of work"),
    "acquire": (_acquire, "fetch, decode, resize and shard the pictures"),
    "score": (_score, "add columns computed from captions and pictures"),
    "select": (_select, "choose rows by an expression over columns, and drop duplicates"),
    "status": (_status, "show progress and rejections, from any terminal"),
    "verify": (_verify, "check files against the commit records"),
}
