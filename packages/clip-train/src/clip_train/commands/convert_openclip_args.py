"""`clip-train convert-openclip-args`: turns a command line of OpenCLIP's trainer into a recipe."""

import sys
from dataclasses import dataclass, field

from clip_train.convert import convert

__all__ = ["Config", "run"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Prints the recipe, with a comment for each flag that has no equal."""

    arguments: tuple[str, ...] = field(metadata={"positional": True})
    """the command line in quotes: "torchrun --nproc_per_node 8 -m open_clip_train.main --model ViT-B-32 …" """
    ranks: int = 0
    """processes of the run, by which the batch size is multiplied; 0 reads them from torchrun, or is 1"""


def run(config: Config) -> int:
    recipe = convert(" ".join(config.arguments), ranks=config.ranks)
    print(recipe.toml, end="")
    if recipe.warnings:
        print(f"{recipe.warnings} flags have no equal: see the comments", file=sys.stderr)
    return 0
