"""`clip-data verify`: files against their commit records."""

import sys
from dataclasses import dataclass

from clip_data.commands import Folder


@dataclass(frozen=True, kw_only=True)
class Config(Folder):
    """What is checked."""

    deep: bool = False
    """read every byte: hashes, tar members, ids, rows of columns and selections"""


def run(config: Config) -> int:
    from clip_data.verify import verify

    problems = verify(config.dataset, config.deep, progress=sys.stderr.isatty())
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print(f"{config.dataset}: no problems" + ("" if config.deep else " (sizes only; --deep reads every byte)"))
    return 2 if problems else 0
