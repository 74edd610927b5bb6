"""The command `clip-models`. Each sub-command is a module of clip_models.commands, loaded when it is asked for."""

from collections.abc import Sequence
from typing import NoReturn

from clip_core.cli import run_commands

COMMANDS = {
    "list": "architectures and their pretrained tags",
    "profile": "parameters, FLOPs and activations of architectures",
    "embed": "pictures or captions to embeddings",
    "classify": "a picture against labels",
    "export": "a model for another runtime",
    "push": "a model to a hub, with its card",
}
ABOUT = "CLIP models: what there is, what it costs, and what it says of pictures and captions."


def main(args: Sequence[str] | None = None) -> NoReturn:
    """The entry point; exits with 0, or with 2 after one line that says what is wrong."""
    run_commands("clip_models", COMMANDS, ABOUT, args)


if __name__ == "__main__":
    main()
