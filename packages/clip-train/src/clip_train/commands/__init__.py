"""The sub-commands of `clip-train`: each module has a dataclass `Config` and a function `run(config)`."""
