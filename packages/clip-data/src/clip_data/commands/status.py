"""`clip-data status`: progress and rejections."""

import json
from dataclasses import dataclass

from clip_data.commands import Folder


@dataclass(frozen=True, kw_only=True)
class Config(Folder):
    """How the state is shown."""

    json: bool = False
    """print JSON instead of a table"""


def run(config: Config) -> int:
    from clip_data.status import format_status, status

    state = status(config.dataset)
    print(json.dumps(state, indent=1) if config.json else format_status(state))
    return 0
