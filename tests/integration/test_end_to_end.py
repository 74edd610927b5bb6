"""The main job, whole: from a table of URLs, good and bad, to a report."""

import html
import json
import re

import pyarrow.parquet as pq
import pytest
import s3fs

from clip_core.cli import parse
from clip_data.demo import KINDS
from pipelines.end_to_end import EndToEnd, substitute
from tests.support.pipeline import SHORT, digests, free_port, run
from tests.support.s3 import s3_bucket


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("end_to_end") / "run"
    args = ("--output", folder, f"--input.port={free_port()}", "--fit.train.seed=7", *SHORT)
    done = run("end_to_end.py", *args)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, args, done


def test_the_whole_run_may_be_in_an_object_store(finished, tmp_path):
    """The same numbers, and a second call that finds everything done."""
    folder, args, _ = finished
    with s3_bucket() as settings:
        there = ("--output", "s3://bucket/run", *args[2:])
        for _ in range(2):
            done = run("end_to_end.py", *there, env={**settings, "XDG_CACHE_HOME": str(tmp_path)})
            assert done.returncode == 0, done.stderr[-3000:]
            assert done.stdout.splitlines()[-1] == "report: s3://bucket/run/report.html"
        assert "train:" not in done.stderr
        store = s3fs.S3FileSystem(
            key=settings["AWS_ACCESS_KEY_ID"],
            secret=settings["AWS_SECRET_ACCESS_KEY"],
            endpoint_url=settings["AWS_ENDPOINT_URL"],
        )
        values = [json.loads(line)["value"] for line in (folder / "eval/results.jsonl").read_text().splitlines()]
        assert [json.loads(line)["value"] for line in store.cat("bucket/run/eval/results.jsonl").splitlines()] == values
        assert store.exists("bucket/run/report.html")


def sidecars(folder):
    return [row for path in sorted(folder.glob("dataset/shards/*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_names_in_strings_are_substituted_everywhere():
    config = parse(EndToEnd, ["pipelines/recipes/quickstart.toml"], prog="end_to_end.py", description="")
    assert "{output}" in config.report.out
    assert substitute(config, output='/"x').report.out == config.report.out.replace("{output}", '/"x')


def test_it_says_where_the_report_is(finished):
    folder, _, done = finished
    assert done.stdout.strip().splitlines()[-1] == f"report: {folder}/report.html"
    assert (folder / "report.html").stat().st_size > 50_000


def test_the_seed_that_is_given_is_the_seed_that_trains(finished):
    folder, _, _ = finished
    assert json.loads((folder / "config.json").read_text())["fit"]["train"]["seed"] == 7
    assert json.loads((folder / "train/config.json").read_text())["train"]["seed"] == 7


def test_every_row_has_the_outcome_of_its_kind(finished):
    folder, _, _ = finished
    rows = sidecars(folder)
    assert len(rows) == 200
    outcome = {"image": "success", "tiny": "success", "opted_out": "rejected", "rejected": "rejected"}
    wrong = [(row["kind"], row["error"]) for row in rows if row["status"] != outcome[KINDS[row["kind"]].outcome]]
    assert wrong == []
    assert {row["error"] for row in rows if KINDS[row["kind"]].outcome == "opted_out"} == {"opt_out"}


def test_the_funnel_adds_up_and_the_report_names_every_reason(finished):
    folder, _, _ = finished
    rows = sidecars(folder)
    reasons = {row["error"] for row in rows} - {None}
    assert len(reasons) > 12
    clean = json.loads((folder / "dataset/selections/clean/selection.json").read_text())
    assert clean["attempted"] == 200 == clean["kept"] + sum(count for _, count in clean["counts"])
    parts = [
        json.loads((folder / f"dataset/selections/{name}/selection.json").read_text()) for name in ("train", "heldout")
    ]
    assert sum(part["kept"] for part in parts) == clean["kept"]
    page = (folder / "report.html").read_text()
    dropped = {reason.removeprefix("where ") for reason, count in clean["counts"] if count} - {"rejected"}
    for reason in reasons | dropped:
        assert html.escape(reason) in page, reason


def test_tiny_images_and_duplicates_are_filtered_with_their_counts(finished):
    folder, _, _ = finished
    counts = dict(json.loads((folder / "dataset/selections/clean/selection.json").read_text())["counts"])
    kinds = [row["kind"] for row in sidecars(folder)]
    assert counts["where width >= 48"] == sum(kind.startswith("tiny") for kind in kinds)
    assert counts["duplicate sha256"] == sum(kind in ("duplicate_row", "duplicate_bytes") for kind in kinds)


def test_a_second_run_does_nothing_again(finished):
    folder, args, _ = finished
    watched = ("dataset/shards/*", "dataset/columns/**/*", "dataset/selections/**/*", "train/**/*", "eval/**/*")
    before = {path: path.stat().st_mtime_ns for pattern in watched for path in folder.glob(pattern) if path.is_file()}
    done = run("end_to_end.py", *args)
    assert done.returncode == 0, done.stderr[-3000:]
    touched = {str(path.relative_to(folder)) for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert touched <= {"eval/results.jsonl", "eval/config.json", "train/config.json"}


def test_results_carry_what_is_needed_to_judge_them(finished):
    folder, _, _ = finished
    rows = [json.loads(line) for line in (folder / "eval/results.jsonl").read_text().splitlines()]
    top1 = next(row for row in rows if row["metric"] == "top1")
    assert top1["chance"] == 1 / 64
    assert {row["benchmark"] for row in rows} == {"objects", "retrieval"}
    for row in rows:
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
        assert row["n"] > 0
        assert re.fullmatch("[0-9a-f]{32}", row["fingerprint"])


def test_the_log_holds_what_was_promised(finished):
    folder, _, _ = finished
    lines = [json.loads(line) for line in (folder / "train/log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 10, 16]
    assert {"lr", "grad_norm", "logit_scale", "samples_per_s", "loader_wait_s"} <= set(steps[0])
    assert [line["step"] for line in lines if line.get("event") == "validation"] == [8, 16]
    assert list((folder / "train/tensorboard").iterdir())


def test_training_and_evaluation_run_on_their_own_from_the_resolved_configs(finished, tmp_path):
    folder, _, _ = finished
    trained = run("train.py", folder / "train/config.json")
    assert trained.stdout.startswith("16 steps, loss "), trained.stderr[-2000:]
    whole = json.loads((folder / "config.json").read_text())
    parts = {"evaluate": whole["evaluate"], "report": {**whole["report"], "out": str(tmp_path / "again.html")}}
    (tmp_path / "evaluation.json").write_text(json.dumps(parts))
    evaluated = run("evaluate.py", tmp_path / "evaluation.json")
    assert "image_to_text_recall@1" in evaluated.stdout, evaluated.stderr[-2000:]
    assert '<section id="evaluation"' in (tmp_path / "again.html").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--input.seed=1"], "input.seed is 0 there and 1 now"),
        (["--acquire.image-size=48"], "acquire.image_size is 64 there and 48 now"),
        (["--fit.optim.lr=0.1"], "fit.optim.lr is 0.002 there and 0.1 now"),
    ],
)
def test_a_folder_of_another_run_is_refused(finished, change, message):
    folder, args, _ = finished
    before = digests(folder, "**/*")
    done = run("end_to_end.py", *args, *change)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert digests(folder, "**/*") == before
