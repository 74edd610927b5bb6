"""The sub-commands of `clip-models`: each module has a dataclass `Config` and a function `run(config)`."""
