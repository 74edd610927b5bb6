"""The embedded input of the quickstart: rendered scenes, a URL table about them, and a loopback server.

Everything follows from (seed, index) alone, so a run that is killed and started again meets the same pictures.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clip_data.demo.drawing import encode, render
    from clip_data.demo.folder import write_folder_table
    from clip_data.demo.input import InputConfig, serve, write_input
    from clip_data.demo.kinds import KINDS, Kind, kind_counts
    from clip_data.demo.loopback import LoopbackServer
    from clip_data.demo.scenes import CLASS_NAMES, COLORS, PROMPT_TEMPLATES, SHAPES, Scene, SceneObject, scene
    from clip_data.demo.table import write_table

_MODULES = {
    "CLASS_NAMES": "scenes",
    "COLORS": "scenes",
    "KINDS": "kinds",
    "PROMPT_TEMPLATES": "scenes",
    "SHAPES": "scenes",
    "InputConfig": "input",
    "Kind": "kinds",
    "LoopbackServer": "loopback",
    "Scene": "scenes",
    "SceneObject": "scenes",
    "encode": "drawing",
    "kind_counts": "kinds",
    "render": "drawing",
    "scene": "scenes",
    "serve": "input",
    "write_folder_table": "folder",
    "write_input": "input",
    "write_table": "table",
}

__all__ = [
    "CLASS_NAMES",
    "COLORS",
    "KINDS",
    "PROMPT_TEMPLATES",
    "SHAPES",
    "InputConfig",
    "Kind",
    "LoopbackServer",
    "Scene",
    "SceneObject",
    "encode",
    "kind_counts",
    "render",
    "scene",
    "serve",
    "write_folder_table",
    "write_input",
    "write_table",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
