"""Tables of the demo: words, colours, shapes, and the kinds of rows."""

import json
import tomllib
from importlib.resources import files
from typing import Any


def load(name: str) -> dict[str, Any]:
    """Returns the content of a TOML or JSON file of this folder."""
    text = files(__name__).joinpath(name).read_text("utf-8")
    return json.loads(text) if name.endswith(".json") else tomllib.loads(text)
