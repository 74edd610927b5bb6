"""CLIPA's ways to shorten a caption, for training with very few tokens.

They draw from the generators that OpenCLIP draws from, in its order, so that the same seeds give the same ids: `simple`
from Python's random, `random` and `shuffle` from torch's. `syntax` draws nothing.
"""

import random
from collections.abc import Sequence

import numpy as np

from clip_models.errors import ClipModelsError

REDUCTIONS = ("simple", "random", "shuffle", "syntax")


def reduce_ids(ids: list[int], room: int, reduction: str) -> list[int]:
    """At most `room` of `ids`. simple: a random run of them. random: a random choice, in order. shuffle: that, in
    random order. syntax: the first ones."""
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
    """The captions with at most `room` words: nouns before adjectives, these before verbs and the rest.

    Among words of one kind the ones that numpy's unstable sort puts first are kept, as in OpenCLIP. Needs nltk and two
    of its data packages; ClipModelsError says how to get them.
    """
    try:
        import nltk
    except ModuleNotFoundError as error:
        raise ClipModelsError(
            "tokenizer.reduction 'syntax' needs nltk, which is not installed; pip install nltk"
        ) from error
    kept = []
    for text in texts:
        try:
            words = nltk.tokenize.word_tokenize(text)
            tags = [tag for _, tag in nltk.pos_tag(words)]
        except LookupError as error:
            raise ClipModelsError(
                "tokenizer.reduction 'syntax' needs nltk's data, which is not here; "
                "python -m nltk.downloader punkt punkt_tab averaged_perceptron_tagger averaged_perceptron_tagger_eng"
            ) from error
        order = np.argsort(np.array([_rank(tag) for tag in tags], dtype=np.int64))
        kept.append(" ".join(words[i] for i in sorted(order[:room])))
    return kept


def _rank(tag: str) -> int:
    kinds = ("NN", "JJ", "VB")
    return next((rank for rank, kind in enumerate(kinds, 1) if tag.startswith(kind)), 4)
