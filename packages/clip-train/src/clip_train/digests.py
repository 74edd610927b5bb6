"""The digests of the weights that a run starts from or learns from. They are part of its identity."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from clip_core import ClipError
from clip_core.files import sha256_of
from clip_core.store import Store
from clip_train.config import FitConfig
from clip_train.errors import ClipTrainError
from clip_train.runfolder import read_run


def with_digests(config: FitConfig) -> FitConfig:
    """Returns the config with the digests of all weights that it names, which are fetched if they are not here.

    Weights that cannot be found have the digest that the run folder knows: a run that is finished does not need them.
    Raises ClipTrainError if the config gives another digest, or one of weights that it does not name.
    """
    named = {f"model.{key}": source for key, source in config.model.weights().items()}
    named |= {f"task.{key}": source for key, source in config.task.weights().items()}
    if unknown := sorted(config.weights.keys() - named.keys()):
        raise ClipTrainError(
            f"weights.{unknown[0]!r} is a digest of nothing: the run's weights are {', '.join(named) or 'random'}"
        )
    found = {}
    for key, (source, architecture) in named.items():
        try:
            found[key] = _digest(source, architecture)
        except ClipError:
            known = read_run(config.run).weights if Store(config.run).exists("config.json") else {}
            if key not in known:
                raise
            found[key] = known[key]
        wanted = config.weights.get(key, found[key])
        if wanted != found[key]:
            raise ClipTrainError(
                f"{key} = {source!r} has the SHA-256 {found[key]}, and not weights.{key!r} = {wanted!r}: restore the "
                "file, or omit the digest"
            )
    return replace(config, weights=found)


def _digest(source: str, architecture: str) -> str:
    """Returns the SHA-256 of a file of weights; of an index and its parts that of their digests, one in each line."""
    from clip_models.weights.locate import find_files

    digests = [sha256_of(path) for path in find_files(source, architecture)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
