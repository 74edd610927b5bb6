"""clip-eval, which is an extra."""

from importlib import import_module
from typing import Any

from clip_train.errors import ClipTrainError


def require_eval(key: str, module: str = "clip_eval.evaluation") -> Any:
    """Returns a module of clip-eval. Raises ClipTrainError, which names the key that needs it, if it is missing."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "clip_eval":
            raise
        raise ClipTrainError(f"{key} needs clip-eval: pip install 'clip-train[eval]'") from error
