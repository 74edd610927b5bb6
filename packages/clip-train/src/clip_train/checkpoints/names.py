"""Names of checkpoints on the command line."""


def split_run(text: str) -> tuple[str, str]:
    """Splits RUN@step into (run, step); the step is "" without one."""
    run, at, step = text.rpartition("@")
    return (run, step) if at and step.isdecimal() else (text, "")
