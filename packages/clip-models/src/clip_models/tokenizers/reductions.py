"""CLIPA's ways to shorten a caption, for training with very few tokens.

They draw from the same generators as OpenCLIP in the same order, so that equal seeds give equal ids: `simple` from
Python's random, `random` and `shuffle` from torch's. `syntax` is deterministic.
"""

import random
from collections.abc import Sequence

import numpy as np

from clip_models.errors import ClipModelsError

REDUCTIONS = ("simple", "random", "shuffle", "syntax")


def reduce_ids(ids: list[int], room: int, reduction: str) -> list[int]:
    """Returns at most `room` of `ids`: a random run (simple), a random choice in order (random) or in random order
    (shuffle), or the first ones (syntax)."""
    if len(ids) <= room:
        return ids
    if reduction == "simple":
        start = random.randint(0, len(ids) - room)
        return ids[start : start + room]
    if reduction in ("random", "shuffle"):
        import torch

        chosen = torch.randperm(len(ids))[:room].tolist()
        return [ids[i] for i in (sorted(chosen) if reduction == "random" else chosen)]
    return ids[:room]


def keep_by_syntax(texts: Sequence[str], room: int) -> list[str]:
    """Returns the captions with at most `room` words: nouns first, then adjectives, then verbs, then the rest.

    Among words of one kind those that numpy's unstable sort puts first are kept, as in OpenCLIP. Raises ClipModelsError
    if nltk or its data packages are missing.
    """
    try:
        import nltk
    except ModuleNotFoundError as error:
        raise ClipModelsError("tokenizer.reduction 'syntax' needs nltk; pip install nltk") from error
    kept = []
    for text in texts:
        try:
            words = nltk.tokenize.word_tokenize(text)
            tags = [tag for _, tag in nltk.pos_tag(words)]
        except LookupError as error:
            raise ClipModelsError(
                "tokenizer.reduction 'syntax' needs nltk's data, which is missing; "
                "python -m nltk.downloader punkt punkt_tab averaged_perceptron_tagger averaged_perceptron_tagger_eng"
            ) from error
        order = np.argsort(
            np.array(
                [next((i for i, kind in enumerate(("NN", "JJ", "VB")) if tag.startswith(kind)), 3) for tag in tags],
                dtype=np.int64,
            )
        )
        kept.append(" ".join(words[i] for i in sorted(order[:room])))
    return kept
