"""`clip-models embed`: images or captions to embeddings with keys."""

import json
import os
import sys
from dataclasses import dataclass, field

from clip_models.inference.embedding.config import EmbedConfig


@dataclass(frozen=True, kw_only=True)
class Config(EmbedConfig):
    """Give the same command again to continue a run that was stopped."""

    source: str = field(metadata={"positional": True})
    """a folder of images, tars, parquet tables or lists of paths or captions: a path, a URL, or a quoted pattern"""
    output: str
    """folder of the embeddings"""
    model: str
    """name of the architecture, or hf-hub:org/repo, or local-dir:folder"""
    pretrained: str = ""
    """tag or file of the weights"""


def run(config: Config) -> int:
    from clip_models.inference.embedding.parts import REJECTS
    from clip_models.inference.embedding.run import run_embed

    summary = run_embed(config.source, config.output, config.model, config.pretrained, config, progress=True)
    print(f"{summary.rows:,} of {summary.samples:,} samples are now embeddings in {summary.output}")
    for code, count in summary.rejected.items():
        print(f"{count:,} rejected: {code} (see rejects.jsonl)")
    for reason, count in summary.unused.items():
        print(f"{count:,} not used: {reason} (see unused.jsonl)")
    if summary.truncated:
        print(f"{summary.truncated:,} captions were longer than the model's context and lost their end")
    if summary.rows:
        return 0
    with open(os.path.join(summary.output, REJECTS), encoding="utf-8") as lines:
        first = lines.readline()
    reason = f"the first reason: {json.loads(first)['reason']}" if first else "the source holds no samples"
    print(f"error: nothing was embedded; {reason}", file=sys.stderr)
    return 2
