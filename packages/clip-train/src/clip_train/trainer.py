"""Builds the parts of a run (data, model, task, optimizer, checkpoints, hooks) and runs the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from clip_core import ClipError
from clip_core.console import warn
from clip_data.stream import Manifest, SampleStream, build_manifest, read_once, refuse_overlap
from clip_models import CLIP, get_tokenizer
from clip_train.arithmetic import arithmetic
from clip_train.captions import Captions
from clip_train.checkpoints.export import export
from clip_train.checkpoints.layout import Folder
from clip_train.checkpoints.saver import Checkpoints, Resumed
from clip_train.checkpoints.state import RunState
from clip_train.config import DataConfig, FitConfig, plan_of, total_steps
from clip_train.errors import ClipTrainError
from clip_train.feed import Feed
from clip_train.forecast import foresee
from clip_train.forks import fork
from clip_train.gradients import Gradients
from clip_train.heldout import COLUMNS, chunk_of
from clip_train.hooks import Averaging, Benchmarks, CorruptLimit, Logging, Profiling, Saving, Validation
from clip_train.hooks.benchmarks import Prepared, RankEmbedder, prepare
from clip_train.lengthen import go_on, stable_step
from clip_train.loop import Hook, Loop
from clip_train.matmul import computed_precision, multiplier
from clip_train.model import can_draw_later, make_model
from clip_train.monitor.flops import Utilisation, utilisation
from clip_train.monitor.log import ShownLog
from clip_train.nodecheck import check_nodes
from clip_train.optim.build import Optimization, learning_rate
from clip_train.optim.guard import Spike
from clip_train.parallel import MARGIN_S, World, join_world
from clip_train.parallelize.placement import is_sharded
from clip_train.rewinds import Rewinds
from clip_train.runfolder import FitResult, RunFolder
from clip_train.synthetic import SyntheticConfig, SyntheticStream
from clip_train.tasks.base import Task
from clip_train.watch import Watch


def train(config: FitConfig, folder: RunFolder) -> FitResult:
    """Runs a resolved config whose folder has been checked and is not finished; see `clip_train.fit`."""
    watch = Watch(config.train.timeout, join=config.train.join_timeout, storage=config.checkpoint.timeout)
    watch.saved = max(Folder(config.run).steps(), default=None)
    with (
        watch.running(),
        join_world(config.train.device, watch) as world,
        arithmetic(config.train, world),
        ExitStack() as stack,
    ):
        check_batch(config, world)
        manifest, val_manifest = find_samples(config, world)
        steps = total_steps(config, manifest.samples)
        later = is_sharded(world, config.train) and can_draw_later(config.model, read=config.task.reads_weights)
        model = make_model(config.model, seed=config.train.seed, device="meta" if later else "cpu")
        how = replace(config.train, precision=computed_precision(config.train.precision, world))
        task = config.task.build(model, precision=how.precision, world=world)
        task.text_lengths = config.data.text_lengths
        task.start(manifest, val_manifest, batch_size=config.train.batch_size)
        gradients = Gradients(task, world, how, micro_batches=how.micro_batches, seed=how.seed)
        optim = Optimization(model, config.optim, world.device, gradients.scale)
        plan = plan_of(config, steps, manifest.samples)
        rate = learning_rate(config.optim, plan, config.train.batch_size)
        stream = make_stream(config, manifest, task, world)
        stack.callback(lambda: stream.close())
        benchmarks = prepare(config, world) if config.val.benchmarks else []
        captions = foresee(config, _tokenizer(task), manifest, val_manifest, steps, world)

        world.lead(lambda: stack.enter_context(folder.locked()))
        checkpoints = Checkpoints(
            config.run,
            world,
            RunState(model=model, optimizer=optim.optimizer, parts={**optim.parts, **task.parts}),
            keep=config.checkpoint.keep,
            keep_every=config.checkpoint.keep_every,
            fingerprint=config.lineage(),
            about={"model": model.spec.to_dict(), "steps": steps, "task": task.about},
        )
        world.lead(lambda: go_on(config, steps, manifest.samples))
        run = _Run(
            config=config,
            computed=replace(config, train=how),
            folder=folder,
            world=world,
            manifest=manifest,
            val_manifest=val_manifest,
            steps=steps,
            pinned=stable_step(plan, config.train.batch_size),
            rate=rate,
            task=task,
            gradients=gradients,
            optim=optim,
            benchmarks=benchmarks,
            checkpoints=checkpoints,
            rewinds=Rewinds(config.run, config.optim.spike, world),
        )
        events = partial(_start_events, config, captions, how.precision, model, folder, world)
        while True:
            try:
                metrics = run.finish(stream, events)
                break
            except Spike as spike:
                rewind = run.rewinds.add(spike, checkpoints)
                events = partial(_rewind_events, rewind)
                stream.close()
                stream = make_stream(config, manifest, task, world)
        return world.lead(partial(_export, config, folder, steps, metrics))


@dataclass(frozen=True, kw_only=True)
class _Run:
    """The parts of a run that stay when it goes back to a checkpoint."""

    config: FitConfig
    computed: FitConfig
    """the config with the precision that is computed in"""
    folder: RunFolder
    world: World
    manifest: Manifest | SyntheticConfig
    val_manifest: Manifest | None
    steps: int
    pinned: int
    """the step whose checkpoint is never removed; -1 for none"""
    rate: Callable[[int], float]
    task: Task
    gradients: Gradients
    optim: Optimization
    benchmarks: list[Prepared]
    checkpoints: Checkpoints
    rewinds: Rewinds

    def finish(self, stream: Any, events: Callable[[Resumed], list[dict[str, Any]]]) -> dict[str, float]:
        """Trains from the newest checkpoint, or the beginning, to the last step. Returns the latest measured values.

        `stream` is new. `events` are logged first. Raises Spike if the run has to go back.
        """
        config, world = self.config, self.world
        resumed = self._resume(stream)
        world.watch.saved = resumed.step or None
        world.lead(self.folder.write_config)
        metrics = dict(resumed.metrics)
        self.gradients.multiplier = multiplier(self.computed.train, self.task.model, world, metrics)
        if resumed.step == self.steps:
            return metrics
        with ExitStack() as opened:
            log = opened.enter_context(ShownLog(config, resumed.step, steps=self.steps)) if world.leads else None
            for event in events(resumed):
                if log:
                    log.write({"step": resumed.step, **event})
            world.watch.training = True
            Loop(
                task=self.task,
                gradients=self.gradients,
                optimizer=self.optim.optimizer,
                feed=Feed(stream, self.task, world, items=world.watch.batches(stream, _wait_s(config.data))),
                rate=self.rate,
                steps=self.steps,
                start=resumed.step,
                clip=self.optim.clip,
                guard=self.optim.guard,
                hooks=_hooks(self, stream=stream, log=log, world=world),
                collective=world.collective,
                metrics=metrics,
            ).run()
        return metrics

    def _resume(self, stream: Any) -> Resumed:
        config, world = self.config, self.world
        resumed = self.checkpoints.resume()
        if resumed is not None:
            stream.load_state_dict(resumed.stream)
        else:
            world.lead(self.folder.check_new)
            resumed = Resumed(0, {}, {})
            if config.parent:
                resumed = fork(config, self.checkpoints, stream, self.steps, world, self.manifest.samples)
        self.rewinds.continue_after(resumed, stream)
        return resumed


def _hooks(run: _Run, **shared: Any) -> list[Hook]:
    """Returns the hooks in order; `shared` are the fields that all of them have."""
    config, samples = run.computed, run.manifest.samples
    log_every, batch_size = config.train.log_every, config.train.batch_size
    hooks: list[Hook] = [
        *([Averaging(ema=run.optim.ema)] if run.optim.ema else []),
        *([_profiling(config, run.world)] if config.profile.start else []),
        Logging(
            every=log_every,
            batch_size=batch_size,
            samples=samples,
            utilisation=_utilisation(config, run.task, run.world),
            **shared,
        ),
        CorruptLimit(
            every=log_every,
            limit=config.data.max_corrupt,
            samples=samples,
            batch_size=batch_size,
            warns=config.data.long_captions == "error",
            **shared,
        ),
    ]
    if run.val_manifest:
        hooks.append(_validation(config, run.task, run.val_manifest, run.optim, **shared))
    if run.benchmarks:
        hooks.append(_benchmarks(config, run.task, run.benchmarks, run.optim, **shared))
    return [*hooks, Saving(every=config.checkpoint.every, checkpoints=run.checkpoints, pinned=run.pinned, **shared)]


def _profiling(config: FitConfig, world: World) -> Profiling:
    return Profiling(config=config.profile, folder=Path(config.run) / "profile", world=world)


def _utilisation(config: FitConfig, task: Task, world: World) -> Utilisation | None:
    """Returns what the log compares the rate with, on rank 0; None for a model that cannot be counted."""
    if not world.leads:
        return None
    try:
        return utilisation(
            task.model,
            world.device,
            precision=config.train.precision,
            devices=world.size,
            peak_tflops=config.log.peak_tflops,
        )
    except (ClipError, NotImplementedError) as error:  # a tower of the user may do what the meta device cannot
        warn(f"the log has no mfu: the operations of {config.model.name} cannot be counted: {error}")
        return None


def _validation(
    config: FitConfig, task: Task, manifest: Manifest, optim: Optimization, *, world: World, **shared: Any
) -> Validation:
    val, data = config.val, config.data
    batch_size = val.batch_size or min(config.train.batch_size, manifest.samples)
    chunk = chunk_of(batch_size, batch_size // config.train.micro_batches)
    reader = read_once(
        manifest,
        preprocess=_preprocess(task, None),
        tokenizer=_tokenizer(task),
        batch_size=chunk,
        workers=data.workers,
        columns=tuple(dict.fromkeys([*task.columns, *(COLUMNS if val.retrieval else ())])),
        rank=world.rank,
        world_size=world.size,
        keep_workers=True,
        timeout=data.timeout,
    )
    return Validation(
        every=val.every,
        batches=reader,
        batch_size=batch_size,
        chunk=chunk,
        samples=manifest.samples,
        max_corrupt=val.max_corrupt,
        retrieval=val.retrieval,
        chance=partial(config.task.chance, task.model.spec),
        wait_s=_wait_s(data),
        weights=optim.weights,
        world=world,
        **shared,
    )


def _benchmarks(
    config: FitConfig, task: Task, prepared: list[Prepared], optim: Optimization, *, world: World, **shared: Any
) -> Benchmarks:
    data = config.data
    embedder = RankEmbedder(task=task, world=world, workers=data.workers, timeout=data.timeout, wait_s=_wait_s(data))
    return Benchmarks(
        every=config.val.every,
        prepared=prepared,
        embedder=embedder,
        precision=config.train.precision,
        weights=optim.weights,
        world=world,
        **shared,
    )


def _wait_s(data: DataConfig) -> float:
    """Returns the seconds that a wait for a batch may take: the stream's own error says more, and comes before."""
    return data.timeout + (MARGIN_S if data.workers else 0)


def check_batch(config: FitConfig, world: World) -> None:
    """Raises ClipTrainError if the batch cannot be split into equal parts for the ranks and their micro-batches."""
    size, parts = config.train.batch_size, config.train.micro_batches
    if size % world.size:
        raise ClipTrainError(f"train.batch_size = {size} is not divisible by {world.size} ranks")
    if size // world.size % parts:
        raise ClipTrainError(
            f"the {size // world.size} samples of each rank (train.batch_size = {size}, {world.size} ranks) cannot be "
            f"split into train.micro_batches = {parts} equal parts"
        )


def find_samples(config: FitConfig, world: World) -> tuple[Manifest | SyntheticConfig, Manifest | None]:
    """Returns the training and the held-out samples, which do not overlap unless the config allows it."""
    if config.data.synthetic:
        return config.data.synthetic, None
    manifest = build_manifest(config.data.sources)
    if not config.val.sources:
        return manifest, None
    held_out = build_manifest(config.val.sources)
    if held_out.samples < config.val.batch_size:
        raise ClipTrainError(
            f"val.batch_size = {config.val.batch_size} is more than the {held_out.samples} samples of val.sources: "
            "lower it, or give more data"
        )
    if config.val.overlap == "error":
        world.lead(partial(refuse_overlap, manifest, held_out, name="val.sources", option="val.overlap = 'allow'"))
    return manifest, held_out


def _start_events(
    config: FitConfig,
    captions: list[dict[str, Any]],
    precision: str,
    model: CLIP,
    folder: RunFolder,
    world: World,
    resumed: Resumed,
) -> list[dict[str, Any]]:
    """Returns what is to be known of a run from its start, and measures the nodes if the config says so."""
    events = _damaged(resumed)
    if not resumed.step:
        events += captions
    if precision != config.train.precision:
        if world.leads:
            warn(f"this CPU has no bf16 instructions: train.precision = 'bf16' is computed in {precision}")
        events.append({"event": "precision", "asked": config.train.precision, "computed": precision})
    if config.model.lora.rank:
        from clip_train.adapters import summary

        events.append({"event": "lora", **summary(model)})
    if config.train.node_check:
        events.append(
            {"event": "node_check", **check_nodes(world, folder.local or Path(gettempdir()), config.train.node_check)}
        )
    return events


def _rewind_events(rewind: Mapping[str, Any], resumed: Resumed) -> list[dict[str, Any]]:
    return [*_damaged(resumed), {"event": "rewind", **rewind}]


def _damaged(resumed: Resumed) -> list[dict[str, Any]]:
    return [{"event": "damaged_checkpoint", **moved} for moved in resumed.damaged]


def make_stream(
    config: FitConfig, manifest: Manifest | SyntheticConfig, task: Task, world: World
) -> SampleStream | SyntheticStream:
    """Returns the stream of this rank's batches."""
    if isinstance(manifest, SyntheticConfig):
        if task.columns:
            raise ClipTrainError(f"the task reads the column {task.columns[0]!r}, which data.synthetic does not have")
        return SyntheticStream(
            manifest,
            image_size=task.image_size,
            text_specs=task.text_specs,
            global_batch_size=config.train.batch_size,
            seed=config.train.seed,
            rank=world.rank,
            world_size=world.size,
        )
    return SampleStream(
        manifest,
        preprocess=_preprocess(task, config.data),
        tokenizer=_tokenizer(task),
        global_batch_size=config.train.batch_size,
        seed=config.train.seed,
        rank=world.rank,
        world_size=world.size,
        workers=config.data.workers,
        canonical_streams=config.data.canonical_streams,
        columns=task.columns,
        timeout=config.data.timeout,
    )


def _tokenizer(task: Task) -> Captions | None:
    """Returns the tokenizer of the task; None for a task that does not use the captions."""
    return Captions(tuple(map(get_tokenizer, task.text_specs))) if task.text_specs else None


def _preprocess(task: Task, data: DataConfig | None) -> dict[str, Any]:
    """Returns the preprocess config of the images, with the augmentation of `data`, or None for evaluation."""
    augment = data and {"scale": list(data.scale), "ratio": list(data.ratio), "hflip": data.hflip}
    own = replace(task.model.spec.preprocess, size=task.image_size)
    return {**own.to_dict(), "augment": augment}


def _export(config: FitConfig, folder: RunFolder, steps: int, metrics: dict[str, float]) -> FitResult:
    """Writes the weights that validation measures: model.safetensors, and model-ema.safetensors of an average."""
    for ema in (False, True) if config.optim.ema.decay else (False,):
        export(config, [steps], folder.model(ema=ema), ema=ema)
    return folder.finish(steps=steps, loss=metrics["loss"], val_loss=metrics.get("val_loss"))
