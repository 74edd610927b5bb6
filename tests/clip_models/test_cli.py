"""The command clip-models itself: help, what it says to wrong words, and its exit codes."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from clip_models import cli

HEAVY = ("torch", "numpy", "pyarrow", "transformers", "timm", "fsspec", "huggingface_hub")


def run(*args: object, **env: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "COLUMNS": "200", **env}
    return subprocess.run(
        [sys.executable, "-m", "clip_models.cli", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )


def test_help_names_the_commands():
    for args in ((), ("--help",), ("-h",)):
        done = run(*args, PYTHONPROFILEIMPORTTIME="1")
        assert done.returncode == 0
        assert not re.search(rf"\| +({'|'.join(HEAVY)}|tyro)$", done.stderr, re.MULTILINE)
        assert all(f"  {name} " in done.stdout for name in cli.COMMANDS)


@pytest.mark.parametrize("args", [*([name, "--help"] for name in cli.COMMANDS), ["list", "ViT-B-32"]])
def test_help_and_list_need_no_heavy_library(args):
    done = run(*args, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0, done.stderr[-500:]
    assert not re.search(rf"\| +({'|'.join(HEAVY)})$", done.stderr, re.MULTILINE)
    assert re.search(r"\| +clip_core$", done.stderr, re.MULTILINE)  # or the line above looks for nothing
    assert "--pretrained" in done.stdout or args[0] in ("profile", "list")


def test_every_module_of_commands_is_a_command():
    names = {path.stem for path in (Path(cli.__file__).parent / "commands").glob("*.py")}
    assert set(cli.COMMANDS) == names - {"__init__"}


def test_the_installed_script_is_this_command():
    project = tomllib.loads((Path(cli.__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["scripts"]["clip-models"] == "clip_models.cli:main"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["clasify"], "clip-models has no command 'clasify'; did you mean classify?"),
        (["walk"], "clip-models has no command 'walk'; the commands are list, profile, embed,"),
        (["profile", "ViT-B-33"], "unknown model 'ViT-B-33'; did you mean ViT-B-32"),
        (["list", "resnext"], "no architecture matches 'resnext'"),
        (["export", "--model", "ViT-B-32", "--pretrained", "openia", "--output", "x"], "did you mean openai?"),
        (["export", "--modle", "ViT-B-32", "--output", "x"], "unknown flag --modle; did you mean --model?"),
        (["embed", "here"], "clip-models embed needs --output --model"),
        (["push", "--model", "nowhere.safetensors", "--repo-id", "me/it"], "there is no weights file nowhere.safetens"),
    ],
)
def test_errors_are_one_line_and_code_2(args, message, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(args)
    err = capsys.readouterr().err
    assert caught.value.code == 2
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1


def test_wrong_flags_are_code_2():
    done = run("embed", "here", "--outptu", "there", "--model", "ViT-B-32")
    assert done.returncode == 2
    assert "--output" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("args", ["list", "list --help"])
def test_a_reader_that_leaves_is_no_error(args, unbuffered):
    # The pipe is closed before anything is written; without a buffer that shows at the first line, else at the end.
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m clip_models.cli {args} | true; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    assert (done.stderr, done.returncode) == ("", 0)


def test_an_extra_that_is_not_installed_is_named(tmp_path, monkeypatch, capsys):
    from tests.support import embeddings

    weights = embeddings.model_file(tmp_path)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["export", "--model", str(weights), "--output", str(tmp_path / "out")])
    expected = "export to ONNX needs onnxscript, which is not installed; pip install 'clip-models[export]'"
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
