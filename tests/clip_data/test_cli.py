"""The command: every stage by hand over a real HTTP server, and mistakes as one line with exit code 2."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_data import cli
from clip_data.demo.loopback import LoopbackServer
from tests.support.datasets import jpeg, make_dataset, make_image

PROGRAM = str(Path(sys.executable).with_name("clip-data"))


def call(capsys, *args: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command run in this process."""
    with pytest.raises(SystemExit) as stop:
        cli.main(args)
    out, err = capsys.readouterr()
    return stop.value.code, out, err


@pytest.mark.slow
def test_the_whole_way_from_urls_to_a_selection(tmp_path, capsys):
    images = tmp_path / "pictures"
    images.mkdir()
    for i in range(6):
        (images / f"{i}.jpg").write_bytes(jpeg(make_image(i, (40, 30))))
    root = str(tmp_path / "out")
    with LoopbackServer(port=0, folder=images) as server:
        urls = [f"{server.base_url}/{i}.jpg" for i in (0, 1, 2, 3, 4, 5, 0, 99)]
        rows = pa.table({"url": urls, "text": [f"a picture of the number {i}" for i in range(8)], "label": range(8)})
        pq.write_table(rows, tmp_path / "urls.parquet")
        recipe = tmp_path / "plan.toml"
        recipe.write_text('urls = ["urls.parquet"]\ncaption_column = "text"\nextra_columns = ["label"]\n')
        plan = (
            "plan",
            str(recipe),
            "--urls",
            str(tmp_path / "urls.parquet"),
            "--dataset",
            root,
            "--rows-per-unit",
            "5",
        )
        assert call(capsys, *plan)[:2] == (0, f"plan: 8 rows in 2 units in {root}\n")
        acquire = ("acquire", "--dataset", root, "--allow-private", "True", "--executor.workers", "1")
        code, out, err = call(capsys, *acquire)
        assert (code, out) == (0, "acquire: 7 of 8 rows (87.5%); rejected: http_404 1\n")
        assert "8.00/8.00" in err
    assert call(capsys, *acquire)[1] == out  # nothing is fetched again: the server is gone
    assert call(capsys, "score", "--dataset", root, "--executor.workers", "1")[0] == 0
    code, out, _ = call(
        capsys, "select", "--dataset", root, "--name", "train", "--where", "words >= 3", "--dedup", "sha256"
    )
    assert code == 0
    assert out.startswith("selection train: 6 of 8 rows; rejected 1, duplicate sha256 1")
    state = json.loads(call(capsys, "status", "--dataset", root, "--json")[1])
    assert state["stages"]["acquire"]["counts"] == {"success": 7, "http_404": 1}
    assert state["selections"]["train"]["kept"] == 6
    assert "acquire" in call(capsys, "status", "--dataset", root)[1]
    assert call(capsys, "verify", "--dataset", root, "--deep") == (0, f"{root}: no problems\n", "")
    assert pq.read_table(Path(root, "shards", "00000001.parquet"))["label"].to_pylist() == [5, 6, 7]


@pytest.mark.slow
def test_a_stage_in_which_every_row_fails_is_an_error(tmp_path, capsys):
    root = str(tmp_path / "out")
    pq.write_table(pa.table({"url": ["http://127.0.0.1:1/a", None], "caption": ["a", "b"]}), tmp_path / "urls.parquet")
    assert call(capsys, "plan", "--urls", str(tmp_path / "urls.parquet"), "--dataset", root)[0] == 0
    acquire = ("acquire", "--dataset", root, "--executor.workers", "1")
    for _ in range(2):  # the second run has nothing to do, and the same to say
        code, out, err = call(capsys, *acquire)
        assert (code, out) == (2, "")
        last = err.splitlines()[-1]
        assert last.startswith("error: acquire: none of 2 rows succeeded: missing_url 1, private_address 1; ")
        assert f"remove {root}/commits/acquire " in last
    assert "warning: acquire: none of 2 rows succeeded" in call(capsys, "status", "--dataset", root)[1]
    assert call(capsys, "verify", "--dataset", root, "--deep")[0] == 0
    code, _, err = call(capsys, "score", "--dataset", root, "--scorers", "caption", "--executor.workers", "1")
    assert code == 2
    assert "error: score-caption: none of 2 rows succeeded: rejected_upstream 2" in err.splitlines()[-1]
    assert call(capsys, "select", "--dataset", root, "--name", "all")[0] == 2


@pytest.mark.parametrize("root", ["s3://", "s3:/bucket/data"])
def test_a_url_without_a_bucket_is_no_local_folder(tmp_path, monkeypatch, capsys, root):
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"url": ["http://h/1"], "caption": ["one"]}), "list.parquet")
    code, _, err = call(capsys, "plan", "--urls", "list.parquet", "--dataset", root)
    assert (code, err) == (2, f"error: {root!r} names no folder: write s3://bucket/folder\n")
    assert [path.name for path in tmp_path.iterdir()] == ["list.parquet"]


def test_damage_is_one_line_each_and_exit_code_2(tmp_path, capsys):
    make_dataset(tmp_path, [{"image": make_image(1), "caption": "one"}, {"image": make_image(2), "caption": "two"}], 1)
    for name in ("00000000.tar", "00000001.parquet"):
        (tmp_path / "shards" / name).unlink()
    code, out, err = call(capsys, "verify", "--dataset", str(tmp_path))
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        f"shards/{name}: the file is missing; delete commits/acquire/{unit}.json and run 'clip-data acquire' again"
        for name, unit in (("00000000.tar", "00000000"), ("00000001.parquet", "00000001"))
    ]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fetch"], "clip-data has no command 'fetch'; the commands are plan, acquire"),
        (["plann"], "has no command 'plann'; did you mean plan?"),
        (["plan"], "clip-data plan needs a recipe (a .toml file) or the flags --urls --dataset"),
        (["plan", "--urls", "none.parquet", "--dataset", "out"], "none.parquet does not exist"),
        (
            ["plan", "--urls", "list.parquet", "--dataset", "out", "--caption-column", "text"],
            "has no column 'text'; it has",
        ),
        (["plan", "--urls", "empty.parquet", "--dataset", "out"], "empty.parquet: an empty table"),
        (["plan", "--urls", "list.parquet", "--dataset", "list.parquet/out"], "choose another folder"),
        (
            ["plan", "--urls", "list.parquet", "--dataset", "out", "--rows-per-unt", "3"],
            "did you mean --rows-per-unit?",
        ),
        (["plan", "wrong.toml", "--dataset", "out"], "wrong.toml: unknown key urlz; did you mean urls?"),
        (["acquire", "--dataset", "out"], "out holds no dataset (no dataset.json): plan one with 'clip-data plan'"),
        (["acquire", "--dataset", "done", "--image-size", "64"], "already holds acquire results of another config"),
        (["acquire", "--dataset", "done", "--executor.kind", "slurm"], "'slurm'"),
        (["score", "--dataset", "done", "--scorers", "captoin"], "captoin"),
        (["select", "--dataset", "done", "--name", "x", "--where", "widht > 3"], "widht"),
        (["takedown", "--dataset", "done", "--samples", "x"], "the flags --reason"),
        (["takedown", "--dataset", "done", "--reason", "r", "--samples", "x"], "'x' is neither a uid"),
        (["takedown", "--dataset", "done", "--reason", "r"], "needs at least one uid, key or URL"),
        (["takedown", "--dataset", "done", "--reason", "r", "--file", "none.txt"], "cannot read none.txt"),
        (["status", "--dataset", "out"], "holds no dataset"),
        (["verify", "--dataset", "out"], "holds no dataset"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"url": ["http://h/1"], "caption": ["one"]}), "list.parquet")
    pq.write_table(pa.table({"url": pa.array([], pa.string()), "caption": pa.array([], pa.string())}), "empty.parquet")
    Path("wrong.toml").write_text('urlz = ["list.parquet"]\n')
    make_dataset("done", [{"image": make_image(1), "caption": "one"}])
    code, out, err = call(capsys, *args)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not Path("out").exists()


def test_a_corrupted_tar_ends_in_one_line_and_nothing_is_written(tmp_path, capsys):
    dataset = make_dataset(tmp_path / "data", [{"image": make_image(i), "caption": "one"} for i in range(4)])
    tar = tmp_path / "data" / "shards" / "00000000.tar"
    tar.write_bytes(tar.read_bytes()[:700])
    code, out, err = call(capsys, "score", "--dataset", dataset.url, "--scorers", "image", "--executor.workers", "1")
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]  # after the progress bar
    assert last.startswith("error: ")
    assert "shards/00000000.tar is damaged" in last
    assert "run acquire again" in last
    assert "Traceback" not in err
    assert not (tmp_path / "data" / "columns").exists()


def test_a_reader_that_leaves_is_no_error():
    # Without PYTHONUNBUFFERED the closed pipe shows only when the buffer is flushed.
    done = subprocess.run(
        ["bash", "-c", f"{PROGRAM} plan --help | true; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
    )
    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.slow
def test_help_loads_nothing_heavy(tmp_path):
    for args in ((), ("--help",)):
        assert subprocess.run([PROGRAM, *args], capture_output=True, text=True, check=True).stdout.startswith("usage:")
    probe = (
        "import sys, clip_data.cli\n"
        "try: clip_data.cli.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(sorted({'pyarrow', 'numpy', 'tyro', 'fsspec', 'ray', 'torch', 'aiohttp', 'PIL'} & set(sys.modules)))"
    )

    def loaded(*args: str) -> str:
        run = subprocess.run([sys.executable, "-c", probe, *args], capture_output=True, text=True, check=True)
        return run.stdout.splitlines()[-1]

    assert loaded("--help") == "[]"
    for command in cli.COMMANDS:
        assert loaded(command, "--help") == "['tyro']"


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_each_command_lists_its_flags(capsys, command):
    code, out, err = call(capsys, command, "--help")
    assert (code, err) == (0, "")
    assert f"usage: clip-data {command}" in out
    assert "--dataset" in out
    assert cli.COMMANDS[command][1] in out


@pytest.mark.slow
def test_the_readme_s_example_runs_as_printed(tmp_path):
    readme = Path(__file__).parents[2] / "packages" / "clip-data" / "README.md"
    (tmp_path / "example.py").write_text(readme.read_text().split("```python\n")[1].split("```")[0])
    run = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    counts = ast.literal_eval(run.stdout)
    assert sum(counts.values()) == 200
    assert counts["success"] > 100
    assert "200/200" in run.stderr


def test_the_public_names_are_there():
    import clip_data

    assert all(hasattr(clip_data, name) for name in clip_data.__all__)
    assert set(clip_data.__all__) <= set(dir(clip_data))
    with pytest.raises(AttributeError, match="No clip_data attribute nonsense"):
        clip_data.nonsense  # noqa: B018
