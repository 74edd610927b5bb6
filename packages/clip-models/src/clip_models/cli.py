"""The command `clip-models`. Each sub-command is a module of clip_models.commands, loaded when it is asked for."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from clip_core import ClipError
from clip_core.suggest import did_you_mean
from clip_models.errors import ClipModelsError
from clip_models.flags import parse

COMMANDS = {
    "list": "architectures and their pretrained tags",
    "profile": "parameters, FLOPs and activations of architectures",
    "embed": "pictures or captions to embeddings",
    "classify": "a picture against labels",
    "export": "a model for another runtime",
    "push": "a model to a hub, with its card",
}


def main(args: Sequence[str] | None = None) -> None:
    """The entry point; exits with 0, or with 2 after one line that says what is wrong."""
    code: int | str | None
    try:
        code = _main(sys.argv[1:] if args is None else list(args))
    except ClipError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted: run the same command again to continue", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        code = 0
    except SystemExit as stop:  # --help
        code = stop.code
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has left: what it did not want goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code or 0)


def _main(args: list[str]) -> int | None:
    if not args or args[0] in ("-h", "--help"):
        print(_overview())
        return 0
    name, *rest = args
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS, f"the commands are {', '.join(COMMANDS)}")
        raise ClipModelsError(f"clip-models has no command {name!r}; {hint}")
    command = import_module(f"clip_models.commands.{name}")
    return command.run(parse(command.Config, f"clip-models {name}", COMMANDS[name], rest))


def _overview() -> str:
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: clip-models COMMAND [--flags]",
            "",
            "CLIP models: what there is, what it costs, and what it says of pictures and captions.",
            "",
            *(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()),
            "",
            "'clip-models COMMAND --help' lists the flags of a command.",
        ]
    )


if __name__ == "__main__":
    main()
