"""OpenCLIP's command lines as recipes. The table of its flags is openclip_flags.toml."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_core.config import from_dict
from clip_core.suggest import did_you_mean
from clip_train.config import FitConfig, resolve
from clip_train.errors import ClipTrainError
from clip_train.optim import OPTIMIZERS

Flags = dict[str, list[str]]
Keys = dict[str, Any]
_TABLE = Path(__file__).with_name("openclip_flags.toml")
_TRAINER = re.compile(r"(?:open_clip_train|training)(?:\.|/)main(?:\.py)?$|(?:^|/)main\.py$")
_PRECISION = {"fp32": "fp32", "amp": "fp16", "pure_bf16": "pure_bf16", "bf16": "pure_bf16"}
_PRECISION |= dict.fromkeys(("amp_bf16", "amp_bfloat16"), "bf16")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A converted command line."""

    toml: str
    config: FitConfig
    warnings: int
    """number of the given flags that have no equal and may change the result"""


def flag_table() -> dict[str, dict[str, Any]]:
    """Returns what is known of each flag, by its name without dashes."""
    return tomllib.loads(_TABLE.read_text(encoding="utf-8"))


def convert(text: str, *, ranks: int = 0) -> Recipe:
    """Converts the arguments, with or without the command before them. Raises ClipError for an unknown flag or value.

    `ranks`: processes of the run; 0 reads them from torchrun's flags.
    """
    try:
        words = shlex.split(re.sub(r"\\\r?\n", " ", text))
    except ValueError as error:
        raise ClipTrainError(f"the command line cannot be read: {error}") from error
    launch, words = _split_launcher(words)
    table = flag_table()
    given = _read(words, table)
    keys: Keys = {"run": _run_folder(given)}
    notes: list[str] = []
    warnings = 0
    for name, about in table.items():
        values = given.get(name)
        if values is None and "default" in about and not about.get("dev"):
            values = [str(about["default"])]
        elif values is None:
            continue
        if "key" not in about:
            notes.append(f"# --{' '.join([name, *values])}: {about['why']}")
            warnings += about.get("effect") != "none"
        elif "through" not in about:
            keys[about["key"]] = _value(about, values, name)
    for step in (_data, _length, _model, _task, _train, _optim, _log):
        warnings += step(given, keys, notes, ranks or launch)
    return _recipe(keys, notes, warnings)


def _recipe(keys: Keys, notes: list[str], warnings: int) -> Recipe:
    nested: dict[str, Any] = {}
    for key, value in keys.items():
        table, *path, last = (nested, *key.split("."))
        for part in path:
            table = table.setdefault(part, {})
        table[last] = value
    config = resolve(from_dict(FitConfig, nested, "the converted command line"))
    lines = [f"{key} = {_toml(value)}" for key, value in sorted(keys.items(), key=lambda item: item[0])]
    return Recipe(toml="\n".join([*notes, *lines, ""]), config=config, warnings=warnings)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{name} = {_toml(item)}" for name, item in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _split_launcher(words: list[str]) -> tuple[int, list[str]]:
    """Returns (ranks that torchrun would start, the words after the trainer's name)."""
    place = next((number for number, word in enumerate(words) if _TRAINER.search(word)), -1)
    if place < 0 and words and not words[0].startswith("-"):
        raise ClipTrainError(
            f"{words[0]!r} is not OpenCLIP's trainer: give its flags, or a command with open_clip_train.main"
        )
    ranks, before = 1, iter(words[: max(place, 0)])
    for word in before:
        name, equals, value = word.lstrip("-").replace("-", "_").partition("=")
        if name in ("nproc_per_node", "nnodes"):
            value = value if equals else next(before, "")
            if not value.isdigit():
                raise ClipTrainError(f"--{name} {value}: give the number of processes with --ranks")
            ranks *= int(value)
    return ranks, words[place + 1 :]


def _read(words: list[str], table: Mapping[str, Mapping[str, Any]]) -> Flags:
    given: Flags = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise ClipTrainError(f"{word!r} is not a flag of OpenCLIP's trainer")
        name, equals, value = word.removeprefix("--").partition("=")
        name = {"visual-layer-decay": "image-layer-decay"}.get(name.replace("_", "-"), name.replace("_", "-"))
        if name not in table:
            hint = did_you_mean(name, table, "see the table in docs/openclip_flags.md", spell="--{}".format)
            raise ClipTrainError(f"--{name} is not a flag of OpenCLIP's trainer; {hint}")
        kind, values = table[name].get("kind", "one"), [value] if equals else []
        while rest and kind != "flag" and not rest[0].startswith("--") and (kind == "many" or not values):
            values.append(rest.pop(0))
        if kind != "flag" and not values:
            raise ClipTrainError(f"--{name} has no value")
        given[name] = values
    return given


def _number(text: str, name: str) -> int | float:
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            pass
    raise ClipTrainError(f"--{name} {text!r} must be a number")


def _value(about: Mapping[str, Any], values: list[str], name: str) -> Any:
    kind = about.get("kind", "one")
    if kind == "flag":
        return True
    each = [_number(value, name) if re.fullmatch(r"[-+.\d][-+.\deE]*", value) else value for value in values]
    return each if kind == "many" else each[0]


def _run_folder(given: Flags) -> str:
    return f"{given.get('logs', ['./logs/'])[0].rstrip('/')}/{given.get('name', ['run'])[0]}".removeprefix("./")


def _data(given: Flags, keys: Keys, notes: list[str], ranks: int) -> int:
    if given.get("dataset-type") == ["synthetic"]:
        keys["data.synthetic.samples"] = int(_number(given.get("train-num-samples", ["100"])[0], "train-num-samples"))
        return 0
    weights = given.get("train-data-upsampling-factors", [""])[0]
    for flag, key in (("train-data", "data.sources"), ("val-data", "val.sources")):
        if flag not in given:
            continue
        folders = given[flag][0].split("::")
        keys[key] = [{"dataset": folder} for folder in folders]
        notes.append(f"# --{flag}: make a dataset of these tars with 'clip-data adopt', and name its folder in {key}")
        if flag == "train-data" and weights:
            each = [float(_number(weight, "train-data-upsampling-factors")) for weight in weights.split("::")]
            if len(each) != len(folders):
                raise ClipTrainError(
                    f"--train-data-upsampling-factors has {len(each)} numbers for {len(folders)} sources"
                )
            keys[key] = [{"dataset": folder, "weight": weight} for folder, weight in zip(folders, each, strict=True)]
    if "data.sources" not in keys:
        raise ClipTrainError("the command line has no --train-data: only training is converted")
    keys["data.long_captions"] = "truncate"  # as OpenCLIP's tokenizer
    if "aug-cfg" in given:
        pairs = dict(word.partition("=")[::2] for word in given["aug-cfg"])
        for name in ("scale", "ratio"):
            if name in pairs:
                keys[f"data.{name}"] = [float(part) for part in re.findall(r"[\d.]+", pairs[name])]
        if others := sorted(set(pairs) - {"scale", "ratio"}):
            notes.append(f"# --aug-cfg {' '.join(others)}: there are no keys for it")
            return 1
    return 0


def _length(given: Flags, keys: Keys, notes: list[str], ranks: int) -> int:
    epochs = _number(given.get("epochs", ["32"])[0], "epochs")
    accumulated = int(_number(given.get("accum-freq", ["1"])[0], "accum-freq"))
    keys["train.batch_size"] = int(_number(given.get("batch-size", ["64"])[0], "batch-size")) * ranks * accumulated
    if "train-num-samples" in given and "data.synthetic.samples" not in keys:
        keys["train.samples"] = int(_number(given["train-num-samples"][0], "train-num-samples") * epochs)
    else:
        keys["train.epochs"] = epochs
    return 0


def _model(given: Flags, keys: Keys, notes: list[str], ranks: int) -> int:
    keys["model.name"] = given.get("model", ["RN50"])[0].replace("/", "-")
    if keys["model.name"].endswith("-quickgelu"):
        keys["model.name"], keys["model.quick_gelu"] = keys["model.name"].removesuffix("-quickgelu"), True
    if "force-image-size" in given:
        sizes = [int(_number(value, "force-image-size")) for value in given["force-image-size"]]
        keys["model.image_size"] = sizes[0] if len(sizes) == 1 else sizes
    if "lock-text-freeze-layer-norm" not in given and "lock-text" in given:
        keys["model.lock.text_freeze_norms"] = False
    if "lock-text" not in given:
        keys.pop("model.lock.text_freeze_norms", None)
    for tower, flag in (("image", "lock-image"), ("text", "lock-text")):
        if flag not in given:
            keys.pop(f"model.lock.{tower}_unlocked_groups", None)
    return 0


def _task(given: Flags, keys: Keys, notes: list[str], ranks: int) -> int:
    if "siglip" in given:
        keys["task.kind"] = "siglip"
        keys["task.exchange"] = "gather" if given.get("loss-dist-impl") == ["gather"] else "ring"
    elif "distill-model" in given:
        keys["task.kind"] = "distillation"
        keys["task.teacher"] = given["distill-model"][0]
        keys["task.teacher_pretrained"] = given.get("distill-pretrained", [""])[0]
    elif keys["model.name"].startswith("coca"):
        keys["task.kind"] = "coca"
        for loss, default in (("caption", 2.0), ("contrastive", 1.0)):
            flag = f"coca-{loss}-loss-weight"
            keys[f"task.{loss}_weight"] = float(_number(given.get(flag, [str(default)])[0], flag))
        keys["task.caption_mean"] = "rank"
    return 0


def _train(given: Flags, keys: Keys, notes: list[str], ranks: int) -> int:
    name = given.get("precision", ["amp"])[0]
    if name not in _PRECISION:
        raise ClipTrainError(f"--precision {name} has no equal: choose one of {', '.join(_PRECISION)}")
    keys["train.precision"] = _PRECISION[name]
    if "grad-checkpointing" in given:
        keys["train.grad_checkpointing"] = "full"
    if "torchcompile" in given:
        keys["train.compile"] = "model"
    keys["train.device"] = "cpu" if given.get("device", ["cuda"])[0] == "cpu" else "auto"
    keys["train.parallel"] = "fsdp" if "fsdp" in given else "ddp"
    return 0


def _optim(given: Flags, keys: Keys, notes: list[str], ranks: int) -> int:
    vit = "vit" in keys["model.name"].lower()
    name = given.get("opt", ["adamw"])[0].removeprefix("timm/")
    if name not in list(OPTIMIZERS):
        hint = did_you_mean(name, list(OPTIMIZERS), f"the optimizers are {', '.join(list(OPTIMIZERS))}")
        raise ClipTrainError(f"--opt {name} has no equal; {hint}")
    betas = {"beta1": "0.9", "beta2": "0.98" if vit else "0.999"}
    keys["optim.name"] = name
    keys["optim.betas"] = [float(_number(given.get(flag, [value])[0], flag)) for flag, value in betas.items()]
    keys["optim.eps"] = float(_number(given.get("eps", ["1e-6" if vit else "1e-8"])[0], "eps"))
    keys["optim.decay_rule"] = "openclip"
    keys["optim.schedule"] = {"cosine": "cosine", "const": "constant", "const-cooldown": "wsd"}.get(
        given.get("lr-scheduler", ["cosine"])[0], ""
    )
    options = dict(word.partition("=")[::2] for word in given.get("opt-kwargs", []))
    options |= {"momentum": given["momentum"][0]} if "momentum" in given else {}
    if options:
        keys["optim.options"] = {key: _value({}, [value], "opt-kwargs") for key, value in options.items()}
    if not keys["optim.schedule"]:
        raise ClipTrainError(f"--lr-scheduler {given['lr-scheduler'][0]} has no equal: cosine, const, const-cooldown")
    if keys["optim.schedule"] == "wsd":
        keys["optim.cooldown"] = f"{given.get('epochs-cooldown', ['0'])[0]} epochs"
        if "lr-cooldown-end" in given:
            end = float(_number(given["lr-cooldown-end"][0], "lr-cooldown-end"))
            keys["optim.final"] = end / float(keys["optim.lr"])
    if "skip-scheduler" in given:
        keys |= {"optim.schedule": "constant", "optim.warmup": 0}
    return 0


def _log(given: Flags, keys: Keys, notes: list[str], ranks: int) -> int:
    if {"wandb", "all"} & {*given.get("report-to", [""])[0].split(",")}:
        keys["log.wandb"] = given.get("wandb-project-name", ["open-clip"])[0]
    return 0
