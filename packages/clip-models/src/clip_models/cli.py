"""The command `clip-models`. Each sub-command is a module of clip_models.commands, loaded when it is called."""

from collections.abc import Sequence
from typing import NoReturn

from clip_core.cli import run_commands

COMMANDS = {
    "list": "architectures and their pretrained tags",
    "profile": "parameters, FLOPs and activations of architectures",
    "embed": "images or captions to embeddings",
    "classify": "images against labels",
    "export": "a model for another runtime",
    "push": "a model to a hub, with its card",
}
ABOUT = "CLIP models: list, profile, embed, classify, export and push them."


def main(args: Sequence[str] | None = None) -> NoReturn:
    """The entry point; exits with 0, or with 2 after a one-line error."""
    run_commands("clip_models", COMMANDS, ABOUT, args)


if __name__ == "__main__":
    main()
