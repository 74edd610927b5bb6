"""OpenCLIP's command lines as recipes."""

import argparse
import dataclasses
import sys
import tomllib
from typing import get_type_hints

import pytest

from clip_core import ClipError
from clip_core.config import from_dict, table_of
from clip_train import FitConfig, cli
from clip_train.convert import convert, flag_table
from clip_train.tasks import TASKS
from tests.support import openclip_flags

# After the examples of OpenCLIP's README and its docs.
SINGLE = """python -m open_clip_train.main \\
    --save-frequency 1 --zeroshot-frequency 1 --report-to tensorboard \\
    --train-data="/path/to/train_data.csv" --val-data="/path/to/validation_data.csv" \\
    --csv-img-key filepath --csv-caption-key title --imagenet-val=imagenet/val/ \\
    --warmup 10000 --batch-size=128 --lr=1e-3 --wd=0.1 --epochs=30 --workers=8 --model RN50"""
TORCHRUN = """torchrun --nproc_per_node 4 -m open_clip_train.main \\
    --train-data '/data/cc12m/cc12m-train-{0000..2175}.tar' --train-num-samples 10968539 --dataset-type webdataset \\
    --batch-size 320 --precision amp --workers 4 --imagenet-val /data/imagenet/validation/"""
SLURM = """srun --cpu_bind=v --accel-bind=gn python -u src/open_clip_train/main.py \\
    --save-frequency 1 --report-to tensorboard --train-data="/data/LAION-400M/{00000..41455}.tar" --warmup 2000 \\
    --batch-size=256 --epochs=32 --workers=8 --model ViT-B-32 --name "ViT-B-32-Vanilla" --seed 0 \\
    --local-loss --gather-with-grad"""
COCA = """python -m open_clip_train.main --dataset-type "csv" --train-data "train.csv" --warmup 1000 --batch-size 128
    --lr 1e-5 --wd 0.1 --epochs 1 --workers 3 --model "coca_ViT-L-14" --coca-contrastive-loss-weight 0
    --coca-caption-loss-weight 1 --log-every-n-steps 100"""
DISTILL = """--train-data a::b --train-data-upsampling-factors 1::0.5 --model ViT-B-32 --distill-model ViT-L-14
    --distill-pretrained openai --grad-checkpointing --precision amp_bf16 --force-quick-gelu --lock-image"""
SIGLIP = "--train-data a --model ViT-B-16-SigLIP --siglip --beta2 0.95 --accum-freq 2 --aug-cfg scale='(0.4,1.0)'"


@pytest.mark.parametrize("line", [SINGLE, TORCHRUN, SLURM, COCA, DISTILL, SIGLIP])
def test_a_command_line_becomes_a_recipe_that_resolves(line):
    recipe = convert(line)
    assert from_dict(FitConfig, tomllib.loads(recipe.toml)) == recipe.config


def test_values_follow_openclip():
    single, ranks, slurm = (convert(line).config for line in (SINGLE, TORCHRUN, SLURM))
    assert (single.train.batch_size, single.train.epochs, single.optim.warmup) == (128, 30, 10_000)
    assert (single.optim.betas, single.optim.eps) == ((0.9, 0.999), 1e-8)  # not a ViT
    assert single.train.precision == "fp16"  # amp is OpenCLIP's default
    assert ranks.model.name == "RN50"  # its default too
    assert ranks.train.batch_size == 4 * 320
    assert ranks.train.samples == 32 * 10_968_539
    assert slurm.run == "logs/ViT-B-32-Vanilla"
    assert (slurm.optim.betas, slurm.optim.eps, slurm.optim.lr) == ((0.9, 0.98), 1e-6, 5e-4)
    assert convert(SLURM, ranks=128).config.train.batch_size == 128 * 256
    distill = convert(DISTILL).config
    assert [source.weight for source in distill.data.sources] == [1, 0.5]
    assert (distill.task.kind, distill.task.teacher_pretrained) == ("distillation", "openai")
    assert distill.train.grad_checkpointing == "full"
    assert distill.model.lock.image
    coca = convert(COCA).config.task
    assert (coca.caption_weight, coca.contrastive_weight) == (1, 0)
    siglip = convert(SIGLIP).config
    assert (siglip.train.batch_size, siglip.train.micro_batches, siglip.data.scale) == (128, 2, (0.4, 1.0))


def test_flags_without_an_equal_are_comments():
    recipe = convert(SLURM)
    assert "# --local-loss: the loss is always" in recipe.toml
    assert recipe.warnings == 1  # --save-frequency; --local-loss changes nothing, and TensorBoard is always written


def test_the_log_goes_to_wandb_if_it_is_asked_for():
    asked = convert("--model ViT-B-32 --train-data x.tar --train-num-samples 1000 --report-to wandb,tensorboard")
    assert asked.config.log.wandb == "open-clip"
    named = convert(
        "--model ViT-B-32 --train-data x.tar --train-num-samples 1000 --report-to all --wandb-project-name mine"
    )
    assert named.config.log.wandb == "mine"
    assert convert(SLURM).config.log.wandb == ""


def test_every_flag_of_openclips_parser_is_in_the_table(monkeypatch):
    from open_clip_train.params import parse_args

    seen = {}
    parse = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(
        argparse.ArgumentParser, "parse_args", lambda self, *args: seen.update(parser=self) or parse(self, *args)
    )
    parse_args([])
    table = flag_table()
    actions = [action for action in seen["parser"]._actions if action.dest != "help"]
    assert len(actions) > 80
    for action in actions:
        name = action.option_strings[0].removeprefix("--")
        about = table[name]
        kind = "flag" if action.nargs == 0 else "many" if action.nargs in ("*", "+") else "one"
        assert about.get("kind", "one") == kind, name
        assert not about.get("dev"), name
        if "default" in about and action.default is not None:
            assert about["default"] == action.default, name
    assert {name for name, about in table.items() if not about.get("dev")} == {
        action.option_strings[0].removeprefix("--") for action in actions
    }
    assert len(table) >= 142


def test_every_key_of_the_table_exists():
    def exists(cls, path: list[str]) -> bool:
        names = {field.name for field in dataclasses.fields(cls)}
        if path[0] not in names:
            return False
        return len(path) == 1 or exists(table_of(get_type_hints(cls)[path[0]]), path[1:])

    tasks = {field.name for kind in TASKS for field in dataclasses.fields(TASKS.get(kind))} | {"kind"}
    for name, about in flag_table().items():
        assert "key" in about or about["why"], name
        if key := about.get("key"):
            table, _, rest = key.partition(".")
            assert rest in tasks if table == "task" else exists(FitConfig, key.split(".")), key


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--train-data a --modell ViT-B-32", "--modell is not a flag of OpenCLIP's trainer; did you mean --model?"),
        ("--train-data a --lr fast", "optim.lr = 'fast'"),
        ("--train-data a --opt sophia", "--opt sophia has no equal; the optimizers are adamw"),
        ("--train-data a --batch-size", "--batch-size has no value"),
        ("--model ViT-B-32", "the command line has no --train-data"),
        ("--train-data 'a", "the command line cannot be read"),
        ("python other.py --train-data a", "'python' is not OpenCLIP's trainer"),
        ("--train-data a --model ViT-B-99", "ViT-B-99"),
        ("--train-data a --precision pure_fp16", "--precision pure_fp16 has no equal"),
    ],
)
def test_wrong_command_lines_are_refused(line, message):
    with pytest.raises(ClipError) as error:
        convert(line)
    assert message in str(error.value)


def test_the_command(monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["clip-train", "convert-openclip-args", "--train-data a --model ViT-B-32", "--ranks", "2"]
    )
    with pytest.raises(SystemExit) as ending:
        cli.main()
    output, errors = capsys.readouterr()
    assert (ending.value.code, errors) == (0, "")
    assert tomllib.loads(output)["train"]["batch_size"] == 128


def test_the_page_of_the_docs_is_that_of_the_table():
    assert openclip_flags.PAGE.read_text(encoding="utf-8") == openclip_flags.page()
