"""The tables in the folder `data` of this package."""

import functools
import tomllib
from importlib.resources import files
from typing import Any


@functools.cache
def read_table(name: str) -> dict[str, Any]:
    """Returns the contents of data/<name>.toml. They must not be changed."""
    return tomllib.loads((files("clip_models") / "data" / f"{name}.toml").read_text(encoding="utf-8"))
