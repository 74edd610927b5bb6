"""Makes a trained and evaluated CLIP model, with a report, from a table of (url, caption). Default: the quickstart.

    uv run pipelines/end_to_end.py [recipe.toml] [--output runs/mine] [--fit.train.steps 500]

Stages: plan → acquire → score → select → train → evaluate → report. Each is one call into a package. A finished stage
is skipped: the same command continues a run that was killed.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from clip_core.cli import parse, run_cli
from clip_core.config import from_dict, to_dict
from clip_core.store import Store, claim
from clip_data.acquire import AcquireConfig
from clip_data.demo import InputConfig
from clip_data.executors import ExecutorConfig
from clip_data.plan import PlanConfig
from clip_data.select import SelectConfig
from clip_eval import ClipEvalError, EvalConfig, ReportConfig
from clip_train import FitConfig


@dataclass(frozen=True, kw_only=True)
class EndToEnd:
    output: str
    """folder of the run; `{output}` in any string stands for it, `{fit.run}` and `{evaluate.out}` for those fields"""
    input: InputConfig = field(default_factory=InputConfig)
    """where the table of URLs comes from"""
    plan: PlanConfig
    """the table of URLs, cut into units of work"""
    acquire: AcquireConfig = field(default_factory=AcquireConfig)
    """how images are fetched, checked and resized"""
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    """where data work runs"""
    score: tuple[str, ...] = ("caption", "image")
    """scorers that add columns"""
    select: tuple[SelectConfig, ...]
    """selections, one after the other"""
    fit: FitConfig
    """the training run"""
    evaluate: EvalConfig
    """the evaluation"""
    report: ReportConfig
    """the report"""


def substitute(config: EndToEnd, **values: str) -> EndToEnd:
    """Returns a copy of the config with `{name}` replaced by its value in every string."""
    text = json.dumps(to_dict(config))
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", json.dumps(value)[1:-1])
    return from_dict(EndToEnd, json.loads(text))


def main() -> None:
    args = sys.argv[1:]
    if not args or args[0].startswith("-"):
        args = [str(Path(__file__).parent / "recipes" / "quickstart.toml"), *args]
    config = parse(EndToEnd, args, prog="end_to_end.py", description=__doc__)
    config = substitute(config, output=config.output)
    config = substitute(config, **{"fit.run": config.fit.run, "evaluate.out": config.evaluate.out})
    if config.evaluate.model != f"{config.fit.run}/model.safetensors":
        raise ClipEvalError(
            f"evaluate.model = {config.evaluate.model!r} is not the model that is trained here: write "
            "'{fit.run}/model.safetensors', or evaluate the other one with pipelines/evaluate.py"
        )

    from clip_data.acquire import AcquireStage
    from clip_data.demo import serve, write_input
    from clip_data.executors import make_executor
    from clip_data.plan import plan
    from clip_data.score import ScoreStage
    from clip_data.select import select
    from clip_data.stage import run_stage
    from clip_eval import evaluate, refuse_training_samples, write_report
    from clip_train import fit
    from clip_train.config import resolve

    resolve(config.fit)  # reports a mistake now, not after all data is fetched
    run = Store(config.output)
    claim(run, config, free=("executor", "report"))
    with stage(run, "plan"):
        write_input(config.input, f"{config.output}/input")
        dataset = plan(f"{config.output}/dataset", config.plan)
    with make_executor(config.executor) as executor:
        with stage(run, "acquire"), serve(config.input) if dataset.pending("acquire") else nullcontext():
            run_stage(dataset, AcquireStage(dataset.url, config.acquire), executor)
        with stage(run, "score"):
            for name in config.score:
                run_stage(dataset, ScoreStage(dataset.url, name), executor)
    with stage(run, "select"):
        for selection in config.select:
            select(dataset, selection)
    refuse_training_samples(config.evaluate.benchmarks, config.fit.data.sources)
    with stage(run, "train"):
        fit(config.fit)
    with stage(run, "evaluate"):
        evaluate(config.evaluate)
    with stage(run, "report"):
        print(f"report: {write_report(config.report)}")


@contextmanager
def stage(run: Store, name: str) -> Iterator[None]:
    """Adds a stage's wall time to timings.json, summed over all runs of the command."""
    start = time.monotonic()
    yield
    timings = run.read_json("timings.json") if run.exists("timings.json") else {}
    run.write_json("timings.json", {**timings, name: timings.get(name, 0.0) + time.monotonic() - start})


if __name__ == "__main__":
    run_cli(main)
