import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from clip_core.store import Store
from clip_data.dataset import Dataset
from clip_data.select import SelectConfig, select
from clip_eval import ClipEvalError, EvalConfig, ReportConfig, RetrievalConfig, ZeroShotConfig, evaluate, write_report
from clip_eval.report.funnel import read_funnel
from clip_eval.report.runs import read_run
from tests.support.datasets import make_dataset
from tests.support.evals import make_image, tiny_model
from tests.support.s3 import s3_bucket

HOSTILE = "<script>alert('caption')</script>"
LINKS = ("src", "href", "action", "data", "poster", "srcset", "xlink:href", "background")


class Page(HTMLParser):
    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(markup)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in LINKS]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    samples = []
    for i in range(40):
        color = ("red", "green", "blue")[i % 3]
        caption = f"{HOSTILE} {color} {i}" if i % 4 else f"{color} {i}"
        samples.append({"image": make_image(color, i), "caption": caption, "label": f"{color} thing"})
    for i, code in (
        (3, "http_404"),
        (8, "http_404"),
        (13, "timeout_total"),
        (21, "decode_error"),
        (22, "from_elsewhere"),
    ):
        samples[i] |= {"image": None, "error": code, "url": f'http://evil.test/{i}"><img src=http://evil.test/x>'}
    samples[30]["image"] = samples[29]["image"]
    dataset = make_dataset(folder / "data", samples, rows_per_unit=16)
    select(
        dataset, SelectConfig(name="clean", where='not contains(caption, "red 0") and width >= 24', dedup=("sha256",))
    )
    select(dataset, SelectConfig(name="heldout", where="uid_fraction < 0.4", parent="clean"))
    select(dataset, SelectConfig(name="train", where="uid_fraction >= 0.4", parent="clean"))
    model = tiny_model(folder / "model.safetensors")
    benchmarks = (
        ZeroShotConfig(name=f"things {HOSTILE.replace('/', '')}", dataset=str(folder / "data"), selection="clean"),
        RetrievalConfig(name="captions", dataset=str(folder / "data"), selection="clean"),
    )
    evaluate(EvalConfig(model=str(model), out=str(folder / "eval"), benchmarks=benchmarks))
    (folder / "run").mkdir()
    log = [{"step": 0, "event": "start", "ranks": 1}]
    log += [
        {"step": s, "epoch": s / 10, "samples": 8 * s, "loss": 3 / s, "lr": 0.1, "samples_per_s": 9.0,
         "loader_wait_s": 0.5, "time_s": 2.0 * s}
        for s in range(1, 11)
    ]  # fmt: skip
    log += [{"step": 10, "event": "validation", "val_loss": 0.7, "samples": 8}]
    text = "".join(json.dumps(row) + "\n" for row in log)
    (folder / "run/log.jsonl").write_text(text + '{"step": 11, "lo', encoding="utf-8")
    (folder / "timings.json").write_text('{"acquire": 30.0, "train": 90.0}', encoding="utf-8")
    return folder


def report(place: Path, **changes) -> ReportConfig:
    fields = {
        "out": str(place / "report.html"),
        "dataset": str(place / "data"),
        "selections": ("clean", "train", "heldout"),
        "runs": (str(place / "run"),),
        "evaluation": str(place / "eval"),
        "timings": str(place / "timings.json"),
        "title": "A <b>title</b>",
    }
    return ReportConfig(**{**fields, **changes})


@pytest.fixture(scope="module")
def page(place) -> Page:
    return Page(Path(write_report(report(place))).read_text(encoding="utf-8"))


def test_every_loss_has_its_reason_and_the_sums_add_up(place, page):
    steps = read_funnel(Dataset.open(str(place / "data")), ("clean", "train", "heldout"))
    assert [(step.name, step.before, step.kept) for step in steps[:3]] == [
        ("attempted", 40, 40),
        ("fetched", 40, 36),
        ("decoded and stored", 36, 35),
    ]
    assert dict((reason, n) for reason, _, n in steps[1].lost) == {
        "http_404": 2,
        "timeout_total": 1,
        "from_elsewhere": 1,
    }
    assert dict((reason, n) for reason, _, n in steps[2].lost) == {"decode_error": 1}
    clean, train, heldout = steps[3:]
    assert [n for _, _, n in clean.lost] == [1, 1]
    assert clean.kept == 33 == train.before == heldout.before == train.kept + heldout.kept
    assert all(step.adds_up for step in steps)
    for step in steps:
        assert step.name in page.text
        assert all(reason in page.text for reason, _, _ in step.lost)
    assert "Every row is accounted for" in page.text


def test_sums_that_do_not_add_up_are_said_so(place, tmp_path):
    dataset = Dataset.open(str(place / "data"))
    record = dataset.record("acquire", dataset.units[0])
    changed = {**record, "counts": {**record["counts"], "success": record["counts"]["success"] - 1}}
    dataset.commit("acquire", dataset.units[0], changed)
    try:
        out = write_report(report(place, out=str(tmp_path / "x.html"), evaluation="", runs=(), timings=""))
    finally:
        dataset.commit("acquire", dataset.units[0], record)
    text = Path(out).read_text(encoding="utf-8")
    assert "These numbers do not add up: 40 entered" in text
    assert "Every row is accounted for" not in text


def test_unfinished_units_are_not_attempted(tmp_path):
    dataset = make_dataset(tmp_path / "data", [{"image": make_image("red", i), "caption": "x"} for i in range(8)], 4)
    (tmp_path / "data/commits/acquire/00000001.json").unlink()
    attempted, _, stored = read_funnel(dataset, ())
    assert attempted.lost == [("not_attempted", "units that are not finished yet", 4)]
    assert (attempted.kept, stored.kept) == (4, 4)
    out = write_report(ReportConfig(out=str(tmp_path / "x.html"), dataset=dataset.url))
    assert "4attemptedof 8 URLs of the plan" in Page(Path(out).read_text(encoding="utf-8")).text


def test_strings_of_the_dataset_are_text(page):
    assert "script" not in page.tags
    assert page.handlers == []
    assert "b" not in page.tags[: page.tags.index("h1") + 2]
    assert HOSTILE in page.text
    assert 'http://evil.test/3"><img src=http://evil.test/x>' in page.text


def test_the_page_needs_nothing_but_itself(place, page):
    assert all(link.startswith(("data:image/jpeg;base64,", "#")) for link in page.links)
    assert {tag for tag in page.tags if tag in ("link", "script", "iframe", "object", "embed", "base")} == set()
    raw = (place / "report.html").read_text(encoding="utf-8")
    style = re.search(r"<style>(.*?)</style>", raw, re.S).group(1)
    assert "url(" not in style
    assert "@import" not in style
    assert len(raw) < 5_000_000


def test_every_section_is_there_and_linked(page):
    for name in ("funnel", "columns", "samples", "training", "time", "evaluation"):
        assert f"#{name}" in page.links
    expected = (
        "Kept by clean|Left out by clean|duplicate sha256|held out|Where the time goes|1 min 30 s|top-1|Confusion"
    )
    for words in (*expected.split("|"), "top-1", "From an image to its captions", "From a caption to its images"):
        assert words in page.text, words
    assert page.tags.count("img") > 60


def test_what_is_missing_is_left_out_and_said(place, tmp_path):
    changes = {"runs": ("no/run",), "evaluation": str(tmp_path / "no-eval"), "selections": ("clean", "later")}
    text = Path(write_report(report(place, out=str(tmp_path / "x.html"), timings="", **changes))).read_text("utf-8")
    page = Page(text)
    assert "#training" not in page.links
    assert "#evaluation" not in page.links
    assert "#funnel" in page.links
    for absent in ("training run no/run", "no-eval", "selection later"):
        assert absent in page.text
    with pytest.raises(ClipEvalError, match="nothing to report on"):
        write_report(ReportConfig(out=str(tmp_path / "y.html"), dataset="nowhere"))
    assert not (tmp_path / "y.html").exists()


def test_images_that_were_taken_down_or_lost_do_not_stop_the_page(place, tmp_path):
    samples = [{"image": make_image("red", i), "caption": f"red {i}", "label": "red"} for i in range(6)]
    samples[2]["image"] = b"damaged"
    dataset = make_dataset(tmp_path / "data", samples)
    uid = dataset.sidecar(dataset.units[0])["uid"][4].as_py()
    dataset.take_down([uid.hex()], "asked for")
    select(dataset, SelectConfig(name="clean"))
    out = write_report(ReportConfig(out=str(tmp_path / "x.html"), dataset=dataset.url, selections=("clean",)))
    page = Page(Path(out).read_text(encoding="utf-8"))
    assert page.tags.count("img") == 4
    assert "no image" in page.text
    assert "taken_down" in page.text
    assert "red 4" not in page.text
    out = write_report(ReportConfig(out=str(tmp_path / "x.html"), dataset=dataset.url))
    assert "red 4" not in Page(Path(out).read_text(encoding="utf-8")).text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("timings.json", "[1]"),
        ("timings.json", "{"),
        ("log.jsonl", "x\n"),
        ("results.jsonl", "{\n"),
        ("results.jsonl", "[1]\n"),
        ("results.jsonl", '{"task": "objects", "accuracy": 0.5}\n'),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    folder = str(tmp_path)
    given = {
        "timings.json": {"timings": f"{folder}/{name}"},
        "log.jsonl": {"runs": (folder,)},
        "results.jsonl": {"evaluation": folder},
    }[name]
    with pytest.raises(ClipEvalError, match=name):
        write_report(ReportConfig(out=str(tmp_path / "x.html"), **given))


@pytest.fixture
def bucket(monkeypatch):
    """A bucket of an S3 server of its own process."""
    with s3_bucket() as settings:
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        yield "s3://bucket"


@pytest.mark.slow
def test_every_input_and_the_page_may_lie_in_a_bucket(place, tmp_path, bucket, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = Store(f"{bucket}/run")
    store.write_bytes("timings.json", (place / "timings.json").read_bytes())
    local = write_report(report(place))
    for folder in ("run", "eval", "data"):
        for file in sorted((place / folder).rglob("*")):
            if file.is_file():
                store.write_bytes(f"{file.relative_to(place)}", file.read_bytes())
    remote = {"runs": (f"{bucket}/run/run",), "evaluation": f"{bucket}/run/eval", "dataset": f"{bucket}/run/data"}
    out = write_report(report(place, out=f"{bucket}/pages/r.html", timings=f"{bucket}/run/timings.json", **remote))
    assert out == f"{bucket}/pages/r.html"
    assert Store(f"{bucket}/pages").read_bytes("r.html") == Path(local).read_bytes()
    assert list(tmp_path.iterdir()) == []


def test_the_page_needs_the_name_of_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for out in ("", "reports/", "s3://bucket/reports/"):
        with pytest.raises(ClipEvalError, match=f"'{out}' names a folder or a bucket: give the name of a file"):
            write_report(ReportConfig(out=out, dataset="nowhere"))
    assert list(tmp_path.iterdir()) == []


def test_the_same_input_gives_the_same_page(place, tmp_path):
    pages = [write_report(report(place, out=str(tmp_path / name))) for name in ("a.html", "b.html")]
    assert Path(pages[0]).read_bytes() == Path(pages[1]).read_bytes()


def test_stages_are_in_the_order_of_the_pipeline(tmp_path):
    (tmp_path / "timings.json").write_text('{"acquire": 1.0, "else": 1.0, "plan": 2.0, "train": 4.0}')
    out = write_report(ReportConfig(out=str(tmp_path / "x.html"), timings=str(tmp_path / "timings.json")))
    text = Page(Path(out).read_text(encoding="utf-8")).text.partition("Where the time goes")[2]
    assert [text.index(name) for name in ("plan", "acquire", "train", "else")] == sorted(
        text.index(name) for name in ("plan", "acquire", "train", "else")
    )
    assert "8.0 s in all" in text


def test_a_repeated_step_is_the_later_one_and_a_torn_line_is_none(tmp_path):
    rows = [
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 2.5},
        {"step": 2, "event": "resume"},
        {"step": 2, "loss": 2.0},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"st', encoding="utf-8")
    run = read_run(str(tmp_path))
    assert [row["loss"] for row in run.steps] == [3.0, 2.0]
    assert read_run(str(tmp_path / "nothing")) is None
