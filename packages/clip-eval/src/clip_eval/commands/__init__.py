"""The sub-commands of `clip-eval`: each module has a dataclass `Config` and a function `run(config)`."""
