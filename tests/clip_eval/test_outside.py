"""Contributing's recipes: a benchmark and a section of the report from outside the package, named in a recipe."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from clip_core.cli import parse
from clip_core.errors import ClipError
from clip_eval import EvalConfig, ReportConfig
from tests.clip_eval.outside import SpreadConfig
from tests.support.evals import color_dataset, tiny_model

ROOT = Path(__file__).parents[2]
HERE = "tests.clip_eval.outside"


def run(*args: object) -> str:
    words = [sys.executable, "-m", "clip_eval.cli", *map(str, args)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("outside")
    color_dataset(folder / "data")
    recipe = folder / "recipe.toml"
    recipe.write_text(
        f"""
        model = "{tiny_model(folder / "model.safetensors")}"
        out = "{folder / "eval"}"
        [[benchmarks]]
        name = "spread"
        kind = "{HERE}:SpreadConfig"
        dataset = "{folder / "data"}"
        threshold = 0.5
        """
    )
    return recipe


@pytest.mark.slow
def test_a_benchmark_from_outside_is_measured_and_its_fields_are_part_of_the_fingerprint(recipe):
    config = parse(EvalConfig, [str(recipe)], prog="run", description="")
    assert config.benchmarks == (SpreadConfig(name="spread", dataset=str(recipe.parent / "data"), threshold=0.5),)
    assert "apart" in run("run", recipe)
    (row,) = map(json.loads, (recipe.parent / "eval/results.jsonl").read_text().splitlines())
    assert (row["benchmark"], row["metric"], row["n"], row["corrupt"]) == ("spread", "apart", row["images"], 0)
    assert row["kind"] == f"{HERE}:SpreadConfig"
    run("run", recipe, "--benchmarks.0.threshold", "0.9999")
    (other,) = map(json.loads, (recipe.parent / "eval/results.jsonl").read_text().splitlines())
    assert other["fingerprint"] != row["fingerprint"]
    page = recipe.parent / "report.html"
    run("report", "--out", page, "--evaluation", recipe.parent / "eval")
    assert "apart" in page.read_text(encoding="utf-8")


def test_a_section_from_outside_is_shown_in_its_place(recipe):
    page = recipe.parent / "sections.html"
    sections = ("columns", f"{HERE}:licenses", "funnel")
    run("report", "--out", page, "--dataset", recipe.parent / "data", "--sections", *sections)
    text = page.read_text(encoding="utf-8")
    assert re.findall(r'<section id="(\w+)"', text) == re.findall(r'<a href="#(\w+)"', text)
    assert re.findall(r'<section id="(\w+)"', text) == ["columns", "licenses", "funnel"]
    assert "<h2>Licenses of the images</h2>" in text
    assert "&lt;script&gt;" in text


def test_names_of_sections_are_checked_when_the_config_is_made():
    with pytest.raises(ClipError, match="there is no report section 'funel'; did you mean 'funnel'"):
        ReportConfig(out="x.html", sections=("funel",))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--benchmarks.0.kind", "zeroshoot"], "there is no benchmark 'zeroshoot'; did you mean 'zeroshot'?"),
        (["--benchmarks.0.kind", f"{HERE}:Gone"], "cannot be imported"),
        (["--benchmarks.0.kind", "retrieval"], r"unknown key benchmarks\[0\].threshold"),
    ],
)
def test_kinds_that_do_not_fit_are_named(recipe, words, message):
    with pytest.raises(ClipError, match=message):
        parse(EvalConfig, [str(recipe), *words], prog="run", description="")
