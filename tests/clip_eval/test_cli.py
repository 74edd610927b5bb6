import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.evals import color_dataset, tiny_model

COMMAND = [sys.executable, "-m", "clip_eval.cli"]


def run(*args: object, **env: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **env}
    return subprocess.run(
        [*COMMAND, *map(str, args)], capture_output=True, text=True, timeout=120, check=False, env=environment
    )


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    color_dataset(folder / "data")
    tiny_model(folder / "model.safetensors")
    benchmark = f'name = "colors"\nlabel_column = "color"\ndataset = "{folder / "data"}"\n'
    (folder / "recipe.toml").write_text(f'out = "{folder / "eval"}"\n[[benchmarks]]\n{benchmark}', encoding="utf-8")
    return folder / "recipe.toml"


def test_help_names_the_commands_and_loads_nothing_heavy():
    done = run("--help", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0
    assert not re.search(r"\| +(torch|ray|PIL|numpy|pyarrow|tyro)$", done.stderr, re.MULTILINE)
    assert "run " in done.stdout
    assert "report " in done.stdout


@pytest.mark.parametrize("command", [(), ("run",), ("report",)])
def test_help_needs_no_heavy_library(command):
    code = (
        "import sys; sys.argv = ['clip-eval', *sys.argv[1:], '--help']\n"
        "from clip_eval.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(sorted({'torch', 'ray', 'pyarrow', 'PIL', 'aiohttp'} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr.strip() == "[]"


@pytest.mark.slow
def test_run_prints_a_table_and_writes_rows(recipe):
    done = run("run", recipe, "--model", recipe.parent / "model.safetensors")
    assert done.returncode == 0, done.stderr
    assert "top1" in done.stdout
    assert "mean_per_class_recall" in done.stdout
    assert "samples without a label" in done.stdout
    assert (recipe.parent / "eval/results.jsonl").is_file()
    benchmark = f'[{{name = "colors", label_column = "color", dataset = "{recipe.parent / "data"}"}}]'
    flags = ["--model", recipe.parent / "model.safetensors", "--out", recipe.parent / "eval", "--benchmarks", benchmark]
    assert run("run", *flags).stdout == done.stdout  # flags alone say what the recipe says
    page = recipe.parent / "report.html"
    done = run("report", "--out", page, "--evaluation", recipe.parent / "eval", "--dataset", recipe.parent / "data")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(page)
    assert page.is_file()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run", "RECIPE"], "no model given"),
        (["run", "RECIPE", "--model", "nothing.safetensors"], "cannot read the model 'nothing.safetensors'"),
        (["run", "missing.toml"], "cannot read the recipe missing.toml"),
        (["run", "BAD"], "unknown key benchmarks"),
        (["walk"], "clip-eval has no command 'walk'; the commands are run, report"),
        (["report", "--out", "x.html"], "nothing to report on"),
        (["report", "--out", "x.html", "--dataset", "nowhere"], "nothing to report on (dataset nowhere)"),
    ],
)
def test_errors_are_one_line_and_code_2(recipe, tmp_path, args, message):
    bad = tmp_path / "bad.toml"
    bad.write_text('out = "x"\n[[benchmarks]]\nname = "a"\ndataset = "b"\nlabel_colum = "c"\n', encoding="utf-8")
    done = run(*({"RECIPE": recipe, "BAD": bad}.get(arg, arg) for arg in args))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1
    expected = "unknown key" if "BAD" in args else message
    assert expected in done.stderr
