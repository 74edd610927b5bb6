"""The command line: fast help, and one line for each mistake."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from clip_models import create_model, save_model
from clip_train import cli
from tests.clip_train.conftest import boxes
from tests.support.datasets import make_dataset
from tests.support.distributed import free_port, rank_environment
from tests.support.trainer import Trainer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe(tmp_path, datasets) -> Path:
    file = tmp_path / "recipe.toml"
    file.write_text(
        f"""
        run = "{tmp_path / "run"}"
        [model]
        name = "ViT-Ti-4-24"
        [[data.sources]]
        dataset = "{datasets / "train"}"
        [train]
        steps = 2
        batch_size = 8
        threads = 1
        """
    )
    return file


def call(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the console script, run in this process."""
    monkeypatch.setattr(sys, "argv", ["clip-train", *map(str, arguments)])
    with pytest.raises(SystemExit) as ending:
        cli.main()
    output = capsys.readouterr()
    return int(ending.value.code or 0), output.out, output.err


def refused(monkeypatch, capsys, *arguments: object) -> str:
    """The one line with which the command ends."""
    code, output, errors = call(monkeypatch, capsys, *arguments)
    assert (code, output) == (2, ""), errors
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    return errors


@pytest.mark.parametrize("arguments", [["--help"], ["fit", "--help"]])
def test_help_loads_nothing_heavy(arguments):
    command = [sys.executable, "-X", "importtime", "-m", "clip_train", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "recipe.toml" in done.stdout
    assert not re.search(r"\| +(torch|ray|PIL|aiohttp|tensorboard)$", done.stderr, re.MULTILINE)


@pytest.mark.slow
def test_flags_override_the_recipe_and_the_end_is_told(monkeypatch, capsys, recipe, tmp_path):
    code, output, errors = call(monkeypatch, capsys, "fit", recipe, "--train.steps", "1", "--optim.lr", "1e-3")
    assert code == 0, errors
    assert re.fullmatch(rf"1 steps, loss \d\.\d{{4}}: {tmp_path}/run/model.safetensors\n", output)
    assert '"lr": 0.001' in (tmp_path / "run" / "log.jsonl").read_text()


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("[optim]\nlearning = 1", "unknown key optim.learning"),
        ('[optim]\nlr = "fast"', "optim.lr = 'fast'"),
        ("[optim]\nlr = -1.0", "optim.lr = -1.0"),
        ("[checkpoint]\nevery = 1.5", "checkpoint.every = 1.5"),
        ("[val]\nevery = 1", "val.every = 1"),
    ],
)
def test_a_recipe_that_does_not_fit(monkeypatch, capsys, recipe, tmp_path, line, named):
    recipe.write_text(recipe.read_text() + line)
    assert named in refused(monkeypatch, capsys, "fit", recipe)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--train.batch-size", "41"], "41 is more than the 40 samples"),
        (["--model.name", "ViT-B-33"], "ViT-B-33"),
        (["--model.pretrained", "missing.safetensors"], "missing.safetensors"),
        (["--run", "/proc/nowhere/run"], "/proc/nowhere/run"),
        (["--data.canonical-streams", "3"], "canonical_streams=3"),
    ],
)
def test_values_that_only_the_machine_can_judge(monkeypatch, capsys, recipe, tmp_path, flags, named):
    assert named in refused(monkeypatch, capsys, "fit", recipe, *flags)
    assert not (tmp_path / "run").exists()


def test_no_dataset_where_one_should_be(monkeypatch, capsys, recipe, tmp_path):
    recipe.write_text(re.sub("dataset = .*", f'dataset = "{tmp_path}/nothing"', recipe.read_text()))
    assert f"{tmp_path}/nothing" in refused(monkeypatch, capsys, "fit", recipe)


def test_weights_of_another_architecture(monkeypatch, capsys, recipe, tmp_path):
    model = create_model("ViT-Ti-4-24", seed=0)
    save_model(tmp_path / "other.safetensors", model, model.spec)
    flags = ["--model.name", "ViT-B-32", "--model.pretrained", tmp_path / "other.safetensors"]
    line = refused(monkeypatch, capsys, "fit", recipe, *flags)
    assert "ViT-Ti-4-24" in line
    assert "ViT-B-32" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_without_an_intact_checkpoint_the_run_ends_in_one_line_and_stays_as_it_is(
    monkeypatch, capsys, recipe, tmp_path
):
    assert call(monkeypatch, capsys, "fit", recipe)[0] == 0
    (tmp_path / "run" / "done.json").unlink()  # as if killed before the end: the checkpoint is needed again
    (weights,) = (tmp_path / "run" / "checkpoints" / "step-00000002").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1000])
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "checkpoints").rglob("*")}
    line = refused(monkeypatch, capsys, "fit", recipe)
    assert "step-00000002" in line
    assert "remove" in line
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "checkpoints").rglob("*")} == before
    assert not (tmp_path / "run" / "done.json").exists()


@pytest.mark.slow
def test_flags_alone_are_enough(monkeypatch, capsys, datasets, tmp_path):
    flags = ["--run", tmp_path / "run", "--model.name", "ViT-Ti-4-24", "--train.steps", 1, "--train.batch-size", 8]
    code, output, errors = call(
        monkeypatch, capsys, "fit", *flags, "--data.sources", f'[{{ dataset = "{datasets / "train"}"}}]'
    )
    assert code == 0, errors
    assert output.startswith("1 steps, loss")
    again = call(monkeypatch, capsys, "fit", *flags, "--data.sources.0.dataset", datasets / "train")
    assert again[:2] == (0, output)  # the same run, which is finished


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--model", "ViT-B-32"], "it is a table, whose fields are --model.name, --model.pretrained"),
        (["--model.name", "ViT-B-32"], "needs a recipe (a .toml file) or the flags --run"),
        (["--run=", "--model.name", "ViT-B-32", "--train.steps", "1"], "run is empty"),
        (["--run", "x", "--model.name", "ViT-B-32", "--train.steps", "1"], "or --data.sources.0.dataset"),
    ],
)
def test_too_few_or_wrong_flags(monkeypatch, capsys, flags, line):
    assert line in refused(monkeypatch, capsys, "fit", *flags)


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"WORLD_SIZE": ""}, "WORLD_SIZE = '' must be an integer from 1"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE = 'two' must be an integer"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE = '0' must be an integer from 1"),
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": "1.5"}, "RANK = '1.5' must be an integer"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK = '-1' must be an integer"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK = 2 must be below WORLD_SIZE = 2"),
        ({"RANK": "1"}, "RANK = 1 must be below WORLD_SIZE = 1"),
        ({"LOCAL_RANK": "gpu"}, "LOCAL_RANK = 'gpu'"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, "MASTER_ADDR, the host of rank 0, is not set"),
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "h"}, "MASTER_PORT is not set"),
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "http"}, "MASTER_PORT = 'http'"),
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "70000"}, "from 1 to 65535"),
    ],
)
def test_a_launcher_that_says_nonsense(monkeypatch, capsys, recipe, tmp_path, variables, line):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    message = refused(monkeypatch, capsys, "fit", recipe)
    assert line in message
    assert "torchrun" in message
    assert not (tmp_path / "run").exists()


def test_a_port_that_is_taken(monkeypatch, capsys, recipe, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        for name, value in rank_environment(0, 2, other.getsockname()[1]).items():
            monkeypatch.setenv(name, value)
        assert "the port is in use" in refused(monkeypatch, capsys, "fit", recipe)


def test_a_caption_longer_than_the_context_ends_in_one_line(monkeypatch, capsys, recipe, tmp_path):
    samples = boxes(16, seed=0)
    samples[3]["caption"] = "a red box " + "very " * 40 + "far away"
    make_dataset(tmp_path / "long", samples)
    recipe.write_text(re.sub("dataset = .*", f'dataset = "{tmp_path}/long"', recipe.read_text()))
    code, output, errors = call(monkeypatch, capsys, "fit", recipe)
    assert (code, output) == (2, "")
    last = errors.splitlines()[-1]  # after the progress bar
    assert last.startswith("error: ")
    assert "47 tokens" in last
    assert "data.long_captions" in last
    assert "Traceback" not in errors
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_run_folder_of_another_run(monkeypatch, capsys, recipe, tmp_path):
    assert call(monkeypatch, capsys, "fit", recipe)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    line = refused(monkeypatch, capsys, "fit", recipe, "--optim.lr", "1")
    assert "optim.lr is 0.0005 there and 1.0 now" in line
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


@pytest.mark.slow
def test_a_batch_that_the_ranks_cannot_share(recipe, tmp_path):
    port = free_port()
    ranks = [
        Trainer("fit", recipe, "--train.batch-size", "7", env=rank_environment(rank, 2, port)) for rank in range(2)
    ]
    messages = [process.communicate(timeout=120)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [2, 2]
    # Rank 0 speaks for all.
    assert messages == ["error: train.batch_size = 7 is not divisible by 2 ranks\n", ""]
    assert not (tmp_path / "run").exists()


def test_an_unknown_command(monkeypatch, capsys):
    assert "'train'" in refused(monkeypatch, capsys, "train")
