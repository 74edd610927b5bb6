"""What users get wrong in the pipeline scripts: one line, exit code 2, nothing half-written."""

import socket

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.pipeline import SHORT, free_port, run


def refused(done, *words):
    assert done.returncode == 2, done.stderr[-2000:]
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr[-2000:]
    assert done.stderr.startswith("error: ")
    for word in words:
        assert word in done.stderr
    return True


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("outptu = 'x'", ["outptu", "output"]),
        ("output = 'x'\n[fit.optim]\nlearning_rate = 1", ["fit.optim.learning_rate"]),
        ("output = 'x'\n[acquire]\nimage_size = 'large'", ["acquire.image_size", "'large'", "integer"]),
        ("output = 'x'\n[[select]]\nname = 'a b'", ["a b"]),
        ("output = [", ["not valid TOML"]),
    ],
)
def test_a_recipe_that_does_not_fit(tmp_path, recipe, words):
    (tmp_path / "recipe.toml").write_text(recipe)
    assert refused(run("end_to_end.py", tmp_path / "recipe.toml", cwd=tmp_path), *words)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--evaluate.model", "other.safetensors"], ["evaluate.model = 'other.safetensors'", "pipelines/evaluate.py"]),
        (["--fit.run", "elsewhere", "--fit.train.steps=-1"], ["train.steps = -1"]),  # the evaluation follows the run
    ],
)
def test_the_model_that_is_trained_is_the_one_that_is_evaluated(tmp_path, flags, words):
    assert refused(run("end_to_end.py", "--output", "run", *flags, cwd=tmp_path), *words)
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_that_is_not_there(tmp_path):
    assert refused(run("end_to_end.py", tmp_path / "none.toml"), "none.toml", "No such file")


@pytest.mark.parametrize("flags", [(), ("--evaluate.out", "results")])
def test_an_evaluation_without_a_model_is_told_what_it_lacks(tmp_path, flags):
    done = run("evaluate.py", *flags, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: no model given")


def test_a_port_in_use(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = run("end_to_end.py", "--output", tmp_path / "run", f"--input.port={port}", *SHORT)
    assert refused(done, str(port), "--input.port")


def test_an_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    done = run("end_to_end.py", "--output", tmp_path / "file" / "run", f"--input.port={free_port()}", *SHORT)
    assert refused(done, "file/run")
    assert (tmp_path / "file").read_text() == ""


def test_an_output_that_holds_something_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert refused(run("end_to_end.py", "--output", tmp_path, *SHORT), "not empty", "another output folder")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"link": ["http://a/"], "caption": ["a"]}, ["'url'", "link"]),
        ({"url": pa.array([], pa.string()), "caption": pa.array([], pa.string())}, ["no row"]),
        ({"url": [1], "caption": ["a"]}, ["url"]),
    ],
)
def test_a_table_that_does_not_fit(tmp_path, table, words):
    pq.write_table(pa.table(table), tmp_path / "urls.parquet")
    done = run("build_shards.py", "--urls", tmp_path / "urls.parquet", "--output", tmp_path / "out")
    assert refused(done, *words)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_no_table(tmp_path):
    done = run("build_shards.py", "--urls", tmp_path / "urls.parquet", "--output", tmp_path / "out")
    assert refused(done, "urls.parquet")


def test_a_stage_in_which_every_row_fails_stops_the_pipeline(tmp_path):
    out, options = tmp_path / "run", ("--acquire.allow-private", "False", f"--input.port={free_port()}")
    done = run("end_to_end.py", "--output", out, *options, *SHORT)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: acquire: none of 200 rows succeeded: private_address ")
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "dataset", "input", "timings.json"]
    assert not (out / "dataset" / "columns").exists()
    tables, target = out / "input" / "urls.parquet", tmp_path / "shards"
    done = run("build_shards.py", "--urls", tables, "--output", target, "--executor.workers=1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("error: acquire: none of 200 rows succeeded: private_address ")
    done = run("filter_shards.py", "--dataset", target, "--name", "all", "--executor.workers=1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("error: score-caption: none of 200 rows succeeded: rejected_up")
    assert not (target / "selections").exists()
