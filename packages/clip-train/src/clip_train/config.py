"""The config of a training run, and the checks that do not require torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from clip_core.config import fingerprint, to_dict
from clip_data.stream.source import Source
from clip_eval.benchmarks import BenchmarkConfig, check_names
from clip_train.checkpoints.names import split_run
from clip_train.errors import ClipTrainError
from clip_train.model import ModelConfig
from clip_train.monitor.config import LogConfig, ProfileConfig
from clip_train.optim.config import OptimConfig, check_optim
from clip_train.optim.plan import Plan, make_plan
from clip_train.parallelize.config import ParallelConfig
from clip_train.synthetic import SyntheticConfig
from clip_train.tasks import TaskConfig
from clip_train.tasks.contrastive import ContrastiveConfig


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The training samples and how they are read and augmented."""

    sources: tuple[Source, ...] = ()
    """datasets or selections, mixed by their weights"""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    """samples that are made up, in place of sources, to measure devices without data"""
    workers: int = 1
    """reader processes of each rank; 0 reads in the training process"""
    canonical_streams: int = 0
    """streams that the sample order is made of, a multiple of every world size to be used; 0 chooses a number"""
    scale: tuple[float, float] = (0.9, 1.0)
    """area of the random crop, as a share of the image"""
    ratio: tuple[float, float] = (0.75, 1.3333)
    """aspect ratio of the random crop"""
    hflip: float = 0.0
    """probability of a horizontal flip"""
    long_captions: Literal["error", "truncate"] = "error"
    """captions with more tokens than the model's context are truncated; error ends the run before its first step if a
    sample of some thousand captions has any"""
    text_lengths: tuple[int, ...] = ()
    """numbers of tokens, beside the whole context, that the captions of a batch are padded to, rising; features do not
    depend on them; empty for two to an octave: 8, 12, 16, 24, 32, 48, 64, …"""
    timeout: float = 600.0
    """largest number of seconds that one wait for the next batch may take"""
    max_corrupt: float = 0.05
    """largest share of corrupt samples of those read since step 0; above it the run stops; 1.0 allows all"""


@dataclass(frozen=True, kw_only=True)
class ValConfig:
    """Held-out samples whose loss is measured during training."""

    sources: tuple[Source, ...] = ()
    """datasets; empty for no validation"""
    batch_size: int = 0
    """samples of one batch; 0 takes that of training, or all samples if there are fewer; the rest that fills no batch
    is counted and left out of the loss"""
    every: int = 0
    """steps between two measurements; 0 measures only after the last step"""
    overlap: Literal["error", "allow"] = "error"
    """whether held-out samples with the uid of a training sample are an error or allowed"""
    retrieval: bool = True
    """rank all captions for each image and all images for each caption; takes N² products for N samples"""
    max_corrupt: float = 0.05
    """largest share of corrupt samples; above it the run stops; 1.0 allows all"""
    benchmarks: tuple[BenchmarkConfig, ...] = ()
    """benchmarks of clip-eval, such as zero-shot classification, that are measured with the weights of the run at the
    same steps, in train.precision; [[val.benchmarks]] in a recipe"""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ParallelConfig):
    """Length, batch size, and how the ranks compute."""

    steps: int = 0
    """length in optimizer steps; give exactly one of steps, samples, epochs"""
    samples: int = 0
    """length in samples seen"""
    epochs: float = 0.0
    """length in passes over the data"""
    batch_size: int = 256
    """samples of one step, of all ranks together"""
    micro_batches: int = 1
    """parts that each rank computes one after another in a step, for less memory; the gradient stays the same"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto uses CUDA if it is available"""
    seed: int = 0
    """seed of the weights, the sample order and the augmentation"""
    threads: int = 0
    """CPU threads of torch in each rank; 0 uses torch's default (bits differ between thread counts)"""
    matmul: Literal["auto", "torch", "onednn", "tf32x3", "bf16x3"] = "auto"
    """how float32 matrices are multiplied: by torch, on a CPU those of linear layers by onednn, on CUDA those of the
    loss as three products of TF32 or bf16. auto takes what is known to be fastest on the CPU; on CUDA, unless bits are
    promised, the start of the run measures which is, with a gradient right to 1e-5, and a resumed run keeps it"""
    deterministic: Literal["auto", "off", "warn", "strict"] = "auto"
    """strict: equal runs have equal bits, and an operation that cannot promise it is an error; warn: it is a warning;
    off: the fastest kernels; auto: strict on a CPU, off on CUDA. The samples are the same in every case"""
    log_every: int = 10
    """steps between two lines of the log"""
    timeout: float = 600.0
    """largest number of seconds that one wait for other ranks may take"""
    join_timeout: float = 600.0
    """largest number of seconds that the ranks may take to come together at the start"""
    node_check: float = 0.0
    """measures products, links and storage of each rank before the first step, and ends the run if a rank has less than
    this share of the median; 0 skips the check"""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save. The last step is always saved."""

    every: int = 1000
    """steps between two checkpoints"""
    keep: int = 2
    """number of the newest checkpoints that are kept"""
    keep_every: int = 0
    """checkpoints at multiples of this step are kept for good; 0 keeps none of them"""
    timeout: float = 1800.0
    """largest number of seconds that a save, or another task in the run folder, may take"""


_NOT_DECIDING = {
    "": ("run", "checkpoint", "extend", "log", "profile"),
    "data": ("workers", "long_captions", "max_corrupt", "text_lengths", "timeout"),
    "val": ("overlap", "retrieval", "max_corrupt", "benchmarks"),
    "train": (
        *("log_every", "device", "deterministic", "matmul", "timeout", "join_timeout", "node_check"),
        *("parallel", "shard", "offload", "grad_checkpointing", "compile", "compile_backend", "compile_limit"),
    ),
}
"""Keys, by table, that may change when a run is continued."""
LENGTHS = ("steps", "samples", "epochs")


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """One training run: the same config in the same folder continues it."""

    run: str
    """output folder: a path on a local or shared file system, or an fsspec URL such as s3://bucket/run"""
    model: ModelConfig
    task: TaskConfig = field(default_factory=ContrastiveConfig)
    data: DataConfig = field(default_factory=DataConfig)
    val: ValConfig = field(default_factory=ValConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    weights: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the pretrained weights, by the key that names them, such as "model.pretrained"; filled in when the run
    starts; one that is given must be right"""
    parent: str = ""
    """a checkpoint of another run to start from, RUN@STEP, with this config; also --from"""
    extend: bool = False
    """let the run in the folder go on to a greater length, from the last step at which both have the same rates"""

    def identity(self) -> dict[str, Any]:
        """Returns what decides the result. The rest of the config may change when a run is continued."""
        whole: dict[str, Any] = to_dict(self)
        for table, keys in _NOT_DECIDING.items():
            for key in keys:
                del (whole[table] if table else whole)[key]
        return whole

    def fingerprint(self) -> str:
        """Returns 32 hex digits that name the identity."""
        return fingerprint(self.identity())

    def lineage(self) -> str:
        """Returns 32 hex digits that name the identity without the length, which may grow."""
        whole = self.identity()
        for name in LENGTHS:
            del whole["train"][name]
        return fingerprint(whole)


_MATMUL: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "onednn": ("cpu", ("off",), "eager training on a CPU"),
    "tf32x3": ("cuda", ("off", "block", "model"), "a loss that is not compiled, on CUDA"),
    "bf16x3": ("cuda", ("off", "block", "model"), "a loss that is not compiled, on CUDA"),
}
"""The device, the ways of compilation, and both in words, that a value of train.matmul is for."""


def check_matmul(matmul: str, device: str, compiled: str) -> None:
    """Raises ClipTrainError for a library that has no effect. `device` may be auto, which is not known yet."""
    wanted, compilations, words = _MATMUL.get(matmul, (device, (compiled,), ""))
    for name, value, valid in (("device", device, (wanted, "auto")), ("compile", compiled, compilations)):
        if value not in valid:
            raise ClipTrainError(
                f"train.matmul = {matmul!r} has no effect with train.{name} = {value!r}: it is for {words}; omit it"
            )


def resolve(config: FitConfig) -> FitConfig:
    """Checks the values and returns the config. Raises ClipError. Requires neither torch nor the data."""
    spec = config.model.spec()
    config.task.check(spec)
    config.model.check(config.train.precision)
    check_optim(config.optim)
    train, data, val = config.train, config.data, config.val
    train.check(micro_batches=train.micro_batches)
    lengths = {name: getattr(train, name) for name in LENGTHS}
    given = {name: value for name, value in lengths.items() if value}
    if len(given) != 1:
        named = ", ".join(f"train.{name} = {value}" for name, value in given.items()) or "none of them"
        raise ClipTrainError(f"give exactly one of train.steps, train.samples and train.epochs, not {named}")
    check_matmul(train.matmul, train.device, train.compile)
    logits = getattr(config.task, "logits", "fp32")
    if train.matmul in ("tf32x3", "bf16x3") and logits != "fp32":
        raise ClipTrainError(
            f"train.matmul = {train.matmul!r} has no effect with task.logits = {logits!r}: omit one of them"
        )
    if not config.run:
        raise ClipTrainError("run is empty: name the output folder")
    if config.parent and split_run(config.parent)[0].rstrip("/") == config.run.rstrip("/"):
        raise ClipTrainError(f"parent = {config.parent!r} is in the run folder itself: name another run folder")
    data.synthetic.check(config.model.context_length or spec.text.context_length)
    if data.synthetic and (data.sources or val.sources):
        named = "data.sources" if data.sources else "val.sources"
        raise ClipTrainError(f"data.synthetic makes up all samples, so {named} cannot be read: omit one of them")
    if not (data.sources or data.synthetic):
        raise ClipTrainError("data.sources is empty: name a dataset in [[data.sources]], or --data.sources.0.dataset")
    if val.every and not (val.sources or val.benchmarks):
        raise ClipTrainError(
            f"val.every = {val.every} requires val.sources or val.benchmarks: name a dataset there, or omit val.every"
        )
    check_names(val.benchmarks)
    for one in val.benchmarks:
        if one.precision not in ("fp32", train.precision):  # fp32 is what a benchmark has that says nothing
            raise ClipTrainError(
                f"benchmark {one.name!r} has precision = {one.precision!r}, but val.benchmarks are measured in "
                f"train.precision = {train.precision!r}: omit it"
            )
    at_least: list[tuple[str, float, float]] = [
        *((f"train.{name}", value, 0) for name, value in given.items()),
        ("train.batch_size", train.batch_size, 1),
        ("train.micro_batches", train.micro_batches, 1),
        ("train.seed", train.seed, 0),
        ("train.threads", train.threads, 0),
        ("train.log_every", train.log_every, 1),
        ("checkpoint.every", config.checkpoint.every, 1),
        ("checkpoint.keep", config.checkpoint.keep, 1),
        ("checkpoint.keep_every", config.checkpoint.keep_every, 0),
        ("val.batch_size", val.batch_size, 2 if val.batch_size else 0),
        ("val.every", val.every, 0),
        ("data.workers", data.workers, 0),
        ("data.canonical_streams", data.canonical_streams, 0),
    ]
    for name, value, least in at_least:
        if value < least:
            raise ClipTrainError(f"{name} = {value} must be at least {least}")
    every, keep_every = config.checkpoint.every, config.checkpoint.keep_every
    if keep_every % every:
        raise ClipTrainError(
            f"checkpoint.keep_every = {keep_every} must be a multiple of checkpoint.every = {every}: other steps are "
            "not saved"
        )
    for name, value, ceiling in (("train.seed", train.seed, 2**63 - 1), ("train.threads", train.threads, 1024)):
        if value > ceiling:
            raise ClipTrainError(f"{name} = {value} must be at most {ceiling}")
    above_0 = [
        ("train.timeout", train.timeout),
        ("train.join_timeout", train.join_timeout),
        ("data.timeout", data.timeout),
        ("checkpoint.timeout", config.checkpoint.timeout),
    ]
    for name, value in above_0:
        if value <= 0:
            raise ClipTrainError(f"{name} = {value} must be above 0")
    for source in (*data.sources, *val.sources):
        if source.weight <= 0:
            raise ClipTrainError(f"the weight of {source.dataset} is {source.weight}: it must be above 0")
    for name, value in (
        ("data.hflip", data.hflip),
        ("data.max_corrupt", data.max_corrupt),
        ("val.max_corrupt", val.max_corrupt),
        ("train.node_check", train.node_check),
    ):
        if not 0 <= value <= 1:
            raise ClipTrainError(f"{name} = {value} must be in [0, 1]")
    context = config.model.context_length or spec.text.context_length
    rising = list(data.text_lengths) == sorted(set(data.text_lengths))
    if data.text_lengths and not (rising and data.text_lengths[0] >= 1 and data.text_lengths[-1] <= context):
        raise ClipTrainError(
            f"data.text_lengths = {list(data.text_lengths)} must be rising numbers from 1 to the context of {context}"
        )
    config.log.check()
    config.profile.check(train.device, config.run)
    for name, (low, high), most in (("scale", data.scale, 1.0), ("ratio", data.ratio, float("inf"))):
        if not 0 < low <= high <= most:
            raise ClipTrainError(f"data.{name} = {(low, high)} must be (low, high) with 0 < low <= high <= {most}")
    return config


def total_steps(config: FitConfig, samples: int) -> int:
    """Returns the optimizer steps of the run on this number of samples. Raises ClipTrainError if it cannot be run."""
    train = config.train
    if samples < train.batch_size:
        raise ClipTrainError(
            f"train.batch_size = {train.batch_size} is more than the {samples} samples of data.sources: "
            "lower it, or give more data"
        )
    seen = train.samples or train.epochs * samples
    steps = train.steps or int(seen // train.batch_size)
    if steps < 1:
        raise ClipTrainError(f"the run is shorter than one step of train.batch_size = {train.batch_size} samples")
    if config.profile.start > steps:
        raise ClipTrainError(f"profile.start = {config.profile.start} is after the last of the {steps} steps: lower it")
    plan_of(config, steps, samples)
    return steps


def plan_of(config: FitConfig, steps: int, samples: int) -> Plan:
    """Returns the lengths of the schedule. Raises ClipTrainError if they do not fit into the run."""
    return make_plan(config.optim, steps=steps, batch_size=config.train.batch_size, epoch=samples)
