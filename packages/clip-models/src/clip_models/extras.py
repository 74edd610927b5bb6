"""Optional libraries."""

from importlib import import_module
from typing import Any

from clip_models.errors import ClipModelsError


def require(module: str, extra: str, purpose: str) -> Any:
    """Returns the module. Raises ClipModelsError with the extra to install. `purpose` is the subject of the message."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise ClipModelsError(
            f"{purpose} needs {module.split('.')[0]}, which is not installed; pip install 'clip-models[{extra}]'"
        ) from error
