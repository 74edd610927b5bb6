"""`clip-train submit`: writes the batch script of a run into its folder and submits it to SLURM."""

from dataclasses import dataclass, fields
from pathlib import Path

from clip_train import slurm
from clip_train.config import FitConfig, resolve
from clip_train.errors import ClipTrainError
from clip_train.runfolder import RunFolder

__all__ = ["Config", "run"]


@dataclass(frozen=True, kw_only=True)
class Config(slurm.Request, FitConfig):
    """A training run, and what it asks of SLURM."""

    dry_run: bool = False
    """prints the script and neither writes nor submits anything"""


def run(config: Config) -> int:
    fit = resolve(FitConfig(**{f.name: getattr(config, f.name) for f in fields(FitConfig)}))
    if "://" in fit.run:
        raise ClipTrainError(f"run = {fit.run!r}: SLURM writes the output of a job to files, so 'submit' needs a path")
    path = Path(fit.run)
    job = slurm.Job(
        **{f.name: getattr(config, f.name) for f in fields(slurm.Request)},
        name=slurm.name_of(path),
        log=f"{fit.run}/job-%j.log",
        trainer=slurm.trainer_path(),
    )
    job.check()
    if fit.train.batch_size % (ranks := job.nodes * max(job.gpus, 1)):
        raise ClipTrainError(f"train.batch_size = {fit.train.batch_size} is not divisible by {ranks} ranks")
    recipe, script = path / "config.json", path / slurm.SCRIPT
    text = job.script(str(recipe), str(script))
    if config.dry_run:
        print(text, end="")
        return 0
    folder = RunFolder(fit)
    if folder.finished():
        raise ClipTrainError(f"the run in {path} is finished: its weights are {folder.model()}")
    slurm.refuse_private(path)
    slurm.refuse_second(job)
    folder.write_config()
    script.write_text(text, encoding="utf-8")
    number = slurm.submit(script, recipe)
    print(f"job {number}, {job.name}: its output is {fit.run}/job-{number}.log")
    return 0
