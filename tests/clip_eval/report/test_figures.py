"""Every figure of the page against the raw files, computed here without the report's code."""

import json
import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from clip_data.select import SelectConfig, select
from clip_eval import EvalConfig, ReportConfig, RetrievalConfig, ZeroShotConfig, evaluate, format_table, write_report
from tests.support.datasets import make_dataset
from tests.support.evals import make_image, tiny_model

VOID = {"meta", "img", "br", "link", "input"}
CLASSES = [f"{color} {shape}" for color in ("red", "green", "blue") for shape in ("ring", "star")]
ROWS, UNIT = 3000, 600


class Node:
    def __init__(self, tag: str, attributes: dict[str, str]) -> None:
        self.tag, self.attributes, self.children = tag, attributes, []

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self, tag: str, kind: str = "") -> list["Node"]:
        inner = [child for child in self.children if isinstance(child, Node)]
        mine = [c for c in inner if c.tag == tag and (not kind or kind in c.attributes.get("class", "").split())]
        return mine + [found for child in inner for found in child.all(tag, kind)]


class Tree(HTMLParser):
    def __init__(self, markup: str) -> None:
        super().__init__()
        self.open = [Node("page", {})]
        self.feed(markup)

    def handle_starttag(self, tag, attrs):
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag, attrs):
        self.open[-1].children.append(Node(tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        self.open[-1].children.append(data)


def write_log(folder: Path, steps: list[int], *, resumed_at: int, done: bool) -> None:
    """A log as the trainer writes it: the first line covers one step, in which the loader's workers start."""
    rng = np.random.default_rng(len(steps))
    rows, before, wait, seconds = [{"step": 0, "event": "start", "ranks": 1}], 0, 0.0, 0.0
    for step in steps:
        if before == resumed_at:
            rows.append({"step": before, "event": "resume", "ranks": 1})
        here = 4.0 if before in (0, resumed_at) else float(rng.uniform(0, 0.02))
        wait += here * (step - before)
        seconds += (here + 0.4) * (step - before)
        rows.append(
            {
                **{"step": step, "epoch": step * 32 / 1000, "samples": step * 32, "loss": float(3 / step + 0.5)},
                **{"lr": 1e-3 * step / steps[-1], "grad_norm": float(rng.uniform(1, 2)), "logit_scale": 14.0 + step},
                **{"samples_per_s": float(rng.uniform(70, 80)), "loader_wait_s": here, "corrupt": 0},
                **{"wait_s": wait, "time_s": seconds},
            }
        )
        if step % 20 == 0:
            rows.append({"step": step, "event": "validation", "val_loss": 4 / step, "samples": 8, "left_out": 1})
        before = step
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if done:
        (folder / "done.json").write_text(json.dumps({"step": before}), encoding="utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """3,000 rows of which most failed, 1 in a way of its own; two selections, two runs, two benchmarks."""
    folder = tmp_path_factory.mktemp("figures")
    samples = []
    for i in range(ROWS):
        name = CLASSES[i // 20 % 6]
        sample = {"image": None, "caption": f"number {i} is a {name}", "error": "http_404"}
        if i % 20 == 0:
            size = (24, 20 + i // 20 % 3)
            sample |= {"image": make_image(name.split()[0], i).resize(size), "label": None if i % 500 == 0 else name}
        elif i % 7 == 0:
            sample["error"] = "decode_error"
        samples.append(sample)
    samples[1]["error"] = "timeout_total"
    samples[40]["image"] = b"\xff\xd8 damaged"
    dataset = make_dataset(folder / "data", samples, rows_per_unit=UNIT)
    select(dataset, SelectConfig(name="clean", where="height >= 21"))
    select(dataset, SelectConfig(name="heldout", where="uid_fraction < 0.3", parent="clean"))
    shared = {"dataset": str(folder / "data"), "max_corrupt": 0.2}
    benchmarks = (
        ZeroShotConfig(name="things", classes=tuple(CLASSES), **shared),
        RetrievalConfig(name="captions", **shared),
    )
    evaluate(
        EvalConfig(model=str(tiny_model(folder / "model.safetensors")), out=str(folder / "eval"), benchmarks=benchmarks)
    )
    write_log(folder / "short", [1, *range(10, 91, 10), 96], resumed_at=40, done=True)
    write_log(folder / "long", [1, *range(2, 602)], resumed_at=-1, done=False)
    timings = {"plan": 0.02, "acquire": 3599.7, "train": 59.97, "other": 0.0}
    (folder / "timings.json").write_text(json.dumps(timings), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def page(place) -> Node:
    config = ReportConfig(
        out=str(place / "report.html"),
        dataset=str(place / "data"),
        selections=("clean", "heldout"),
        runs=(str(place / "short"), str(place / "long")),
        evaluation=str(place / "eval"),
        timings=str(place / "timings.json"),
    )
    return Tree(Path(write_report(config)).read_text(encoding="utf-8")).open[0]


def part(page: Node, name: str) -> Node:
    (found,) = (section for section in page.all("section") if section.attributes["id"] == name)
    return found


def sidecar_rows(place: Path) -> list[dict]:
    """The rows of the units that are committed."""
    commits = sorted((place / "data/commits/acquire").glob("*.json"))
    files = [
        name for commit in commits for name in json.loads(commit.read_bytes())["files"] if name.endswith("parquet")
    ]
    return [row for file in files for row in pq.read_table(place / "data" / file).to_pylist()]


def kept(place: Path, selection: str) -> int:
    return sum(pq.read_metadata(file).num_rows for file in (place / f"data/selections/{selection}").glob("*.parquet"))


def records(place: Path, run: str) -> tuple[list[dict], list[dict]]:
    rows = [json.loads(line) for line in (place / run / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row], [row for row in rows if "val_loss" in row]


def shown(share: float, digits: int) -> str:
    """A share in percent, by hand: rounded half to even of the exact value, never 0 or 100 when it is not."""
    text = f"{share * 100:.{digits}f}"
    least = 10**-digits
    if 0 < share * 100 < least / 2:
        return f"< {least:.{digits}f} %"
    return f"> {100 - least:.{digits}f} %" if 100 - least / 2 <= share * 100 < 100 else f"{text} %"


def bars(node: Node) -> list[tuple[str, str]]:
    return [
        (label.text, figure.text)
        for block in node.all("div", "bars")
        for label, figure in zip(block.all("span", "label"), block.all("span", "n"), strict=True)
    ]


def cells(table: Node) -> list[list[str]]:
    return [[cell.text for cell in row.all("td")] for row in table.all("tbody")[0].all("tr")]


def test_the_funnel(place, page):
    rows = sidecar_rows(place)
    stored = sum(row["status"] == "success" for row in rows)
    codes = Counter(row["error"] for row in rows if row["status"] != "success")
    assert len(rows) == ROWS
    assert kept(place, "clean") == sum(row["status"] == "success" and (row["height"] or 0) >= 21 for row in rows)
    found = bars(part(page, "funnel"))
    figures = dict(found)
    for name, n in (
        ("attempted", len(rows)),
        ("fetched", stored + codes["decode_error"]),
        ("decoded and stored", stored),
        ("clean", kept(place, "clean")),
        ("heldout (of clean)", kept(place, "heldout")),
    ):
        assert figures[name] == f"{n:,} · {shown(n / ROWS, 1)}", name
    losses = {label.split()[0] if "_" in label.split()[0] else label: n for label, n in found if "·" not in n}
    assert losses == {
        **{code: f"{n:,}" for code, n in codes.items()},
        "where height >= 21 ": f"{stored - kept(place, 'clean')}",
        "where uid_fraction < 0.3 ": f"{kept(place, 'clean') - kept(place, 'heldout')}",
    }
    assert codes["timeout_total"] == 1
    assert "Every row is accounted for" in part(page, "funnel").text


def test_the_cards(place, page):
    rows = sidecar_rows(place)
    results = {(row["benchmark"], row["metric"]): row for row in map(json.loads, (place / "eval/results.jsonl").open())}
    cards = [
        (card.all("b")[0].text, card.all("span")[0].text, card.all("small")[0].text)
        for card in page.all("header")[0].all("div", "figure")
    ]
    stored = sum(row["status"] == "success" for row in rows)
    expected = [
        (f"{len(rows):,}", "attempted", f"of {ROWS:,} URLs of the plan"),
        (f"{stored}", "decoded and stored", f"{shown(stored / ROWS, 1)} of the URLs"),
        (f"{kept(place, 'clean')}", "clean", f"{shown(kept(place, 'clean') / ROWS, 1)} of the URLs"),
        (f"{kept(place, 'heldout')}", "heldout (of clean)", f"{shown(kept(place, 'heldout') / ROWS, 1)} of the URLs"),
    ]
    for run in ("short", "long"):
        steps, validations = records(place, run)
        held_out = f"held out {validations[-1]['val_loss']:.3f} after {validations[-1]['step']} steps"
        expected.append((f"{steps[-1]['loss']:.3f}", f"{place / run}: loss after {steps[-1]['step']} steps", held_out))
    for benchmark, metric, name in (
        ("things", "top1", "things: top-1"),
        ("captions", "image_to_text_recall@1", "captions: image → text recall@1"),
        ("captions", "text_to_image_recall@1", "captions: text → image recall@1"),
    ):
        row = results[benchmark, metric]
        expected.append((shown(row["value"], 1), name, f"chance {shown(row['chance'], 1)}"))
    assert cards == expected


def test_the_histograms(place, page):
    stored = [row for row in sidecar_rows(place) if row["status"] == "success"]
    values = {
        "width": [row["width"] for row in stored if row["width"] is not None],
        "height": [row["height"] for row in stored if row["height"] is not None],
        "words": [len(row["caption"].split()) for row in stored],
    }
    assert len(values["width"]) == len(stored) - 1
    assert f"{len(stored)} stored samples." in part(page, "columns").text
    charts = {}
    for figure in part(page, "columns").all("figure"):
        titles = [title.text for title in figure.all("title")]
        counts = dict(re.fullmatch(r"(\S+ (?:– \S+|and more)): ([\d,]+)", title).groups() for title in titles)
        charts[figure.all("figcaption")[0].text] = {name: int(n.replace(",", "")) for name, n in counts.items()}
    some = f" ({len(stored) - 1} samples with a value)"
    for name, caption in (("width", "width" + some), ("height", "height" + some), ("words", "words")):
        assert charts[caption] == {f"{v - 0.5:g} – {v + 0.5:g}": n for v, n in sorted(Counter(values[name]).items())}


def test_the_samples(place, page):
    rows = sidecar_rows(place)
    captions = [figure.all("figcaption")[0].text for figure in part(page, "samples").all("figure")]
    assert captions[0] == f"Kept by clean: 28 of {kept(place, 'clean')} samples, drawn by uid"
    codes = Counter(row["error"] for row in rows if row["status"] != "success")
    (table,) = part(page, "samples").all("table")
    assert [row[0].startswith(code) for row, (code, _) in zip(cells(table), codes.most_common(), strict=True)]


def points(chart: Node) -> list[tuple[float, float]]:
    """The first curve of a chart, in the units of its axes."""

    def scale(kind: str, axis: str, shift: float) -> tuple[float, float]:
        ticks = [node for node in chart.all("text", kind) if "axis" not in node.attributes["class"]]
        at = [float(node.attributes[axis]) - shift for node in ticks]
        value = [float(node.text.replace("k", "e3").replace("M", "e6")) for node in ticks]
        slope = (value[-1] - value[0]) / (at[-1] - at[0])
        return slope, value[0] - slope * at[0]

    (ax, bx), (ay, by) = scale("mid", "x", 0), scale("end", "y", 3.5)
    pairs = (pair.split(",") for pair in chart.all("polyline")[0].attributes["points"].split())
    return [(ax * float(x) + bx, ay * float(y) + by) for x, y in pairs]


CURVES = {
    "Contrastive loss": "loss",
    "Learning rate": "lr",
    "Throughput, samples per second": "samples_per_s",
    "Wait for the loader, seconds per step": "loader_wait_s",
    "Gradient norm before clipping": "grad_norm",
    "Logit scale": "logit_scale",
}


@pytest.mark.parametrize("run", ["short", "long"])
@pytest.mark.parametrize("title", CURVES)
def test_the_curves(place, page, run, title):
    steps, validations = records(place, run)
    long = len(steps) > 240
    caption = title + (" (means of up to 3 log lines)" if long else "")
    (figure,) = (f for f in part(page, "training").all("figure") if f.all("figcaption")[0].text == caption)
    drawn = points(figure)
    raw = [(row["step"], row[CURVES[title]]) for row in steps]
    if long:
        bounds = [0]
        for i in range(240):
            bounds.append(bounds[-1] + (3 if i < len(raw) - 480 else 2))
        assert bounds[-1] == len(raw)
        raw = [tuple(np.mean(raw[low:high], axis=0)) for low, high in pairwise(bounds)]
    assert len(drawn) == len(raw)
    for axis in (0, 1):
        expected = np.array([pair[axis] for pair in raw])
        height = max(expected.max() - min(0, expected.min()), 1e-9)
        np.testing.assert_allclose([pair[axis] for pair in drawn], expected, atol=height * 0.004)
    if CURVES[title] == "loss" and not long:
        dots = [circle.all("title")[0].text for circle in figure.all("circle")]
        assert dots == [f"step {row['step']}: {row['val_loss']:.4g}" for row in validations]


def test_what_is_said_of_a_run(place, page):
    text = part(page, "training").text
    short, long = records(place, "short")[0], records(place, "long")[0]
    assert f"96 steps, 3,072 samples seen (3.07 epochs), 1 min {round(short[-1]['time_s']) - 60:02d} s." in text
    minutes, seconds = divmod(round(long[-1]["time_s"]), 60)
    said = f"601 steps, 19,232 samples seen (19.2 epochs), {minutes} min {seconds:02d} s; the run is not finished."
    assert said in text


def test_where_the_time_goes(place, page):
    time = part(page, "time")
    assert bars(time) == [
        ("plan", "< 0.1 s · < 1 %"),
        ("acquire", "1 h 00 min · 98 %"),
        ("train", "1 min 00 s · 2 %"),
        ("other", "0.0 s · 0 %"),
    ]
    assert "1 h 01 min in all." in time.text
    for run in ("short", "long"):
        steps, _ = records(place, run)
        covered = np.diff([0, *(row["step"] for row in steps)])
        wait = sum(row["loader_wait_s"] * n for row, n in zip(steps, covered.tolist(), strict=True))
        share = wait / steps[-1]["time_s"]
        seconds = f"{wait:.1f} s" if wait < 60 else f"1 min {round(wait) - 60:02d} s"
        assert (
            f"Training in {place / run} waited {seconds} for the loader: {100 * share:.1f} % of its time." in time.text
        )


def test_the_table_of_results(place, page):
    rows = [json.loads(line) for line in (place / "eval/results.jsonl").open()]
    table = part(page, "evaluation").all("table")[0]
    assert [title.text for title in part(page, "evaluation").all("h3")] == ["things", "captions"]
    names = {"top1": "top-1", "top5": "top-5", "mean_per_class_recall": "mean per class recall"}
    for row, found in zip(rows, cells(table), strict=True):
        value, interval = found[2], found[3]
        assert found[0] == row["benchmark"]
        assert found[1] == names.get(row["metric"], row["metric"].replace("_to_", " → ").replace("_", " "))
        assert value == shown(row["value"], 2)
        ends = [shown(row[end], 2).removesuffix(" %") for end in ("low", "high")]
        assert interval == " – ".join(ends)
        assert found[5:] == [shown(row["chance"], 2), f"{row['n']:,}"]
        plain = [float(text.strip("<> %")) for text in (ends[0], value, ends[1])]
        assert plain == sorted(plain)
        line = next(
            line
            for line in format_table(rows).splitlines()
            if line.startswith(f"{row['benchmark']}  ") and row["metric"] in line
        )
        assert re.split(r"\s{2,}", line)[2:] == [value, interval, shown(row["chance"], 2), str(row["n"])]
    stored = [row for row in sidecar_rows(place) if row["height"] is not None]
    unlabelled = sum(row["label"] is None for row in stored)
    assert {row["n"] for row in rows} == {len(stored) - unlabelled, len(stored)}
    said = f"things: {place / 'data'}; 1 images that could not be read, {unlabelled} samples without a label"
    assert said in part(page, "evaluation").text


def test_what_stands_behind_a_zero_shot_figure(place, page):
    details = json.loads((place / "eval/details/things.json").read_bytes())
    rows = {row["metric"]: row for row in map(json.loads, (place / "eval/results.jsonl").open())}
    labels = Counter(row["label"] for row in sidecar_rows(place) if row["height"] is not None and row["label"])
    correct = {(t, p): n for t, p, n in details["confusion"]}
    figures = dict(bars(part(page, "evaluation")))
    hits = [correct.get((i, i), 0) for i in range(6)]
    for i, name in enumerate(CLASSES):
        assert figures[name] == f"{hits[i]}/{labels[name]}"
    n = sum(labels.values())
    assert rows["top1"]["value"] == sum(hits) / n
    recalls = [h / labels[name] for h, name in zip(hits, CLASSES, strict=True)]
    assert rows["mean_per_class_recall"]["value"] == pytest.approx(np.mean(recalls))
    words = [
        sum(k for (t, p), k in correct.items() if CLASSES[t].split()[word] == CLASSES[p].split()[word])
        for word in (0, 1)
    ]
    assert figures["first word right"] == shown(words[0] / n, 1)
    assert figures["second word right"] == shown(words[1] / n, 1)
    assert figures["both right"] == shown(sum(hits) / n, 1)
    assert f"Chance is {shown(1 / 3, 1)} and {shown(1 / 2, 1)}." in part(page, "evaluation").text
    word_map, matrix = (
        next(f for f in part(page, "evaluation").all("figure") if f.all("figcaption")[0].text.startswith(start))
        for start in ("Accuracy in percent", "Confusion")
    )
    written = {box.all("title")[0].text: text.text for box, text in _with_text(word_map)}
    for i, name in enumerate(CLASSES):
        share = shown(recalls[i], 0).removesuffix(" %").replace(" ", "")
        assert written[f"{name}: {hits[i]} of {labels[name]}"] == share
    assert {title.text for title in matrix.all("title")} == {
        f"{k} of {labels[CLASSES[t]]} × {CLASSES[t]} taken for {CLASSES[p]}" for (t, p), k in correct.items()
    }
    mistakes = sorted(((k, t, p) for (t, p), k in correct.items() if t != p), key=lambda m: (-m[0], m[1], m[2]))
    table = next(t for t in part(page, "evaluation").all("table") if t.all("th")[0].text == "truth")
    assert cells(table) == [[CLASSES[t], CLASSES[p], f"{k} of {labels[CLASSES[t]]}"] for k, t, p in mistakes[:10]]


def _with_text(figure: Node) -> list[tuple[Node, Node]]:
    """The squares of a heat map, each with the number written into it."""
    boxes = [box for box in figure.all("rect") if box.all("title")]
    return list(zip(boxes, figure.all("text", "mid"), strict=True))


def test_what_stands_behind_a_retrieval_figure(place, page):
    details = json.loads((place / "eval/details/captions.json").read_bytes())
    queries = part(page, "evaluation").all("div", "query")
    for example, query in zip(details["image_to_text"], queries, strict=True):
        answers = query.all("li")
        assert [answer.text for answer in answers[:5]] == [found["candidate"] for found in example["top"]]
        hit = next((i for i, found in enumerate(example["top"]) if found["positive"]), None)
        if hit is None:
            assert (answers[5].attributes["value"], answers[5].text) == (str(example["rank"] + 1), example["best"])
            assert example["rank"] >= 4
        else:
            assert len(answers) == 5
            assert example["rank"] >= hit
    answers = part(page, "evaluation").all("div", "answers")
    for example, answer in zip(details["text_to_image"], answers, strict=True):
        assert answer.all("p")[0].text == f"{example['query']} first match at rank {example['rank'] + 1}"
        hits = [
            span.attributes["class"] == "hit"
            for span in answer.all("span")
            if "missing" not in span.attributes["class"]
        ]
        assert hits == [found["positive"] for found in example["top"]]
