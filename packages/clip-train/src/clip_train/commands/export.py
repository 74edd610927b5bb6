"""`clip-train export`: the weights of a checkpoint, or the mean of several, as one file."""

from dataclasses import dataclass, field

from clip_train.errors import ClipTrainError

__all__ = ["Config", "run"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Writes safetensors with a description, which clip_models.load_model and open_clip load."""

    run: str = field(metadata={"positional": True})
    """a run folder, with its newest checkpoint, or RUN@STEP"""
    output: str = ""
    """the .safetensors file, a path or URL; by default model-STEP.safetensors in the run folder"""
    ema: bool = False
    """take the moving average of the weights (optim.ema)"""
    average: str = ""
    """last:N takes the mean of the newest N checkpoints up to the step"""


def run(config: Config) -> int:
    from clip_train.checkpoints.export import chosen_steps, default_output, export
    from clip_train.checkpoints.layout import Folder
    from clip_train.checkpoints.names import split_run
    from clip_train.runfolder import read_run

    name, at = split_run(config.run)
    if config.output and not config.output.endswith(".safetensors"):
        raise ClipTrainError(f"--output {config.output!r} must end with .safetensors")
    fit = read_run(name)
    steps = chosen_steps(Folder(name), at, config.average)
    output = config.output or default_output(name, steps, ema=config.ema)
    export(fit, steps, output, ema=config.ema)
    what = f"steps {', '.join(map(str, steps))}" if len(steps) > 1 else f"step {steps[0]}"
    print(f"{what}: {output}")
    return 0
