"""CONTRIBUTING's recipes, followed as printed: files under the names of their first lines, then the commands."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.evals import color_dataset, tiny_model
from tests.support.pipeline import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
GUIDE = TEXT.partition("## How to add …")[2].partition("\n## ")[0]
RECIPES = dict(re.findall(r"^### An? (\w+)\n(.*?)(?=^### |\Z)", GUIDE, re.S | re.M))


@pytest.fixture
def follow(tmp_path):
    """Returns a function that follows a recipe in an empty folder, and returns the folder and what was printed."""

    def follow(name: str) -> tuple[Path, str]:
        color_dataset(tmp_path / "data")
        tiny_model(tmp_path / "model.safetensors")
        printed = ""
        for language, block in re.findall(r"```(\w+)\n(.*?)```", RECIPES[name], re.S):
            if language == "bash":
                for command in block.splitlines():
                    printed += run(command, tmp_path)
                continue
            first, _, content = block.partition("\n")
            file = tmp_path / first.removeprefix("# ")
            file.parent.mkdir(exist_ok=True)
            file.write_text(content, encoding="utf-8")
        return tmp_path, printed

    return follow


def run(command: str, folder: Path) -> str:
    words = shlex.split(command.removeprefix("uv run "))
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    program = str(Path(sys.executable).parent / words[0])
    done = subprocess.run(
        [program, *words[1:]], cwd=folder, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_there_is_a_recipe_for_each_extension_point():
    assert sorted(RECIPES) == ["architecture", "benchmark", "executor", "scorer", "task"]


@pytest.mark.slow
def test_a_scorer(follow):
    folder, _ = follow("scorer")
    assert len(list((folder / "data/columns/shouting").glob("*.parquet"))) == 3


@pytest.mark.slow
def test_an_executor(follow):
    folder, _ = follow("executor")
    columns = sorted((folder / "data/columns/caption").glob("*.parquet"))
    ours = [file.read_bytes() for file in columns]
    for file in (*columns, *(folder / "data/commits").glob("*caption*/*")):
        file.unlink()
    run("clip-data score --dataset data --scorers caption", folder)
    assert [file.read_bytes() for file in columns] == ours


@pytest.mark.slow
def test_a_task(follow):
    folder, _ = follow("task")
    assert (folder / "run/model.safetensors").is_file()


@pytest.mark.slow
def test_an_architecture(follow):
    _, printed = follow("architecture")
    assert printed == "my_clip.mean_color:MeanColorConfig\n"


@pytest.mark.slow
def test_a_benchmark(follow):
    folder, printed = follow("benchmark")
    assert "alone" in printed
    assert (folder / "evaluation/results.jsonl").is_file()
