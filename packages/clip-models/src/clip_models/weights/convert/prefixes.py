"""Finds the weights of one model in a training checkpoint, and removes their prefix.

One rule covers entries of a checkpoint (`state_dict`, `model_ema`) and prefixes of names (`model.`, `student.`): the
part of a name before the first word that a model's names begin with (`visual`, `text_model`, …) is a candidate, and the
candidate with both towers is chosen.
"""

import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor

from clip_models.errors import ClipModelsError
from clip_models.weights.tensorfiles.pickles import describe

_MARKS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Parts of names from DistributedDataParallel, torch.compile, FSDP and activation checkpointing."""
_ROOTS = {
    "image": {"visual", "visual_projection", "vision_model", "image_encoder", "img"},
    "text": {
        "text", "text_projection", "text_model", "text_encoder", "txt", "token_embedding", "positional_embedding",
        "transformer", "ln_final", "cls_emb",
    },
    "": {"logit_scale", "logit_bias", "text_decoder"},
}  # fmt: skip
"""The first parts of the names of a model, in any layout, by tower."""
_OF_TRAINING = re.compile(r"(^|[._])optim")
_AVERAGES = re.compile(r"(^|[._])(ema|swa|avg|average\w*|teacher|momentum|target|shadow)([._]|$)")
_LEFTOVERS = re.compile(
    r"([a-z]+_)?(loss|criterion|optim|optimizer|scheduler|scaler|queue|metrics?|ema|averaged|updates|decay|epochs?|steps?"
    r"|iter|iterations?)([._].*)?|(.*\.)?(embeddings\.(position_ids|token_type_ids)|attn_mask)"
)
"""Tensors beside those of a model: states of training, and buffers that every model computes itself."""


def strip_marks(name: str) -> str:
    """Returns `name` without the marks of training, at its start in any order and, except `module.`, inside."""
    while name.startswith(_MARKS):
        name = name.split(".", 1)[1]
    for mark in _MARKS[1:]:
        name = name.replace(f".{mark}", ".")
    return name


def plain_names(
    content: Mapping[str, Any], where: str, *, entry: str | None = None, roots: Collection[str] = ()
) -> dict[str, Tensor]:
    """Returns the tensors of the one model in `content` under its own names; a warning names what is left out.

    Of several whole models, averages and teachers (`ema`, `teacher`) are left out. `entry` is the prefix of the one to
    choose. `roots` are further first parts of names, for a tower alone. Raises ClipModelsError if several models
    remain, if two names become one, and if a part of the model is no tensor.
    """
    named = {strip_marks(name) if isinstance(value, Tensor) else name: value for name, value in content.items()}
    if len(named) < len(content):
        raise ClipModelsError(f"{where} holds {len(content) - len(named)} tensors twice, with and without a prefix")
    kinds = dict.fromkeys(roots, "image") | {root: tower for tower, names in _ROOTS.items() for root in names}
    prefixes = {name: prefix for name in named if (prefix := _prefix(name, kinds)) is not None}
    prefix = _choose(named, prefixes, kinds, where, entry)
    tensors, left = {}, []
    for name, value in named.items():
        rest = name.removeprefix(prefix)
        mine = name.startswith(prefix) and prefixes.get(name, prefix) == prefix
        aside = _LEFTOVERS.fullmatch(rest) or (name not in prefixes and not isinstance(value, Tensor))
        if aside or not mine:
            left.append(name)
        elif isinstance(value, Tensor):
            tensors[rest] = value
        else:
            raise ClipModelsError(f"{where} holds {name} as {describe(value)}; weights are tensors")
    if not tensors:
        raise ClipModelsError(f"{where} holds no weights but {_summary(left)}; save the state dict alone")
    if left:
        taken = f" of {prefix.rstrip('./')}" if prefix else ""
        warnings.warn(f"{where}: weights{taken} taken; left out ({len(left)}): {_summary(left)}", stacklevel=2)
    return tensors


def _prefix(name: str, kinds: Collection[str]) -> str | None:
    """Returns the part of a name before the first word that a model's names begin with; None if there is none."""
    parts = re.split(r"(?<=[./])", name)
    for number, part in enumerate(parts):
        if part.rstrip("./") in kinds:
            return "".join(parts[:number])
    return None


def _choose(
    named: Mapping[str, Any], prefixes: Mapping[str, str], kinds: Mapping[str, str], where: str, entry: str | None
) -> str:
    towers: dict[str, set[str]] = {}
    for name, prefix in prefixes.items():
        if isinstance(named[name], Tensor) and not _OF_TRAINING.search(prefix):
            towers.setdefault(prefix, set()).add(kinds[re.split(r"[./]", name.removeprefix(prefix))[0]])
    if entry is not None:
        towers = {prefix: found for prefix, found in towers.items() if prefix.startswith(strip_marks(f"{entry}."))}
        if not towers:
            entries = sorted({prefix.rstrip("./") for prefix in prefixes.values()} - {""})
            raise ClipModelsError(f"{where} has no entry {entry!r}; it has {', '.join(entries) or 'none'}")
    most = max((len(found - {""}) for found in towers.values()), default=0)
    options = [prefix for prefix, found in towers.items() if most and len(found - {""}) == most]
    own = [prefix for prefix in options if not _AVERAGES.search(prefix)] or options
    if len(own) > 1:
        choice = ", ".join(f"{prefix.rstrip('./') or 'those without a prefix'!r}" for prefix in own)
        raise ClipModelsError(
            f"{where} holds several models: {choice}; save one of them alone, or name it as entry= of"
            " clip_models.weights.load.load_pretrained"
        )
    return own[0] if own else ""


def _summary(names: Iterable[str]) -> str:
    heads = Counter(re.split(r"[./]", name)[0] for name in names)
    shown = [head if count == 1 else f"{head} ({count})" for head, count in heads.most_common(8)]
    return ", ".join(shown) + (", …" if len(heads) > 8 else "")
