import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clip_core.config import from_dict
from clip_core.errors import ClipError
from clip_data.errors import ClipDataError
from clip_data.stream.loader import MAX_REPORTED
from clip_eval import ClipEvalError, EvalConfig, RetrievalConfig, ZeroShotConfig, evaluate, features, format_table
from clip_models import ClipModelsError, ClipTokenizer, load_model, preprocess_eval
from tests.support.datasets import jpeg, make_dataset
from tests.support.evals import COLORS, color_dataset, color_samples, make_image, tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    color_dataset(folder / "data")
    tiny_model(folder / "model.safetensors")
    return folder


def config(place: Path, out: Path, max_corrupt: float = 0.05, **benchmark) -> EvalConfig:
    common = {"dataset": str(place / "data"), "batch_size": 8, "max_corrupt": max_corrupt}
    zero_shot = ZeroShotConfig(**{"name": "colors", "label_column": "color", **common, **benchmark})
    captions = RetrievalConfig(name="captions", **common)
    return EvalConfig(model=str(place / "model.safetensors"), out=str(out), benchmarks=(zero_shot, captions))


def reference_features(place: Path, samples: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Image and caption features of each stored sample, one forward pass each."""
    model, spec = load_model(place / "model.safetensors")
    tokenizer, transform = ClipTokenizer(context_length=12), preprocess_eval(spec.preprocess)

    images, texts = [], []
    with torch.inference_mode():
        for sample in samples:
            stored = Image.open(io.BytesIO(jpeg(sample["image"])))
            images.append(model.encode_image(transform(stored)[None], normalize=True)[0].numpy())
            texts.append(model.encode_text(tokenizer([sample["caption"]]), normalize=True)[0].numpy())
    return np.stack(images), np.stack(texts)


def test_rows_against_one_sample_at_a_time(place, tmp_path):
    rows = {(row["benchmark"], row["metric"]): row for row in evaluate(config(place, tmp_path / "eval"))}
    stored = [sample for sample in color_samples() if sample["image"] is not None]
    images, texts = reference_features(place, stored)
    similarity = images @ texts.T
    own = similarity.diagonal()
    for name, scores in (("image_to_text", similarity), ("text_to_image", similarity.T)):
        rank = (scores > own[:, None]).sum(axis=1)
        for k in (1, 5, 10):
            row = rows["captions", f"{name}_recall@{k}"]
            assert row["value"] == pytest.approx((rank < k).mean())
            assert row["chance"] == pytest.approx(k / len(stored))
            assert (row["n"], row["interval"]) == (len(stored), "wilson")
            assert row["low"] <= row["value"] <= row["high"]
    top1 = rows["colors", "top1"]
    labelled = sum(sample["color"] is not None for sample in stored)
    assert (top1["n"], top1["unlabelled"]) == (labelled, len(stored) - labelled)
    assert top1["chance"] == pytest.approx(1 / 3)
    assert ("colors", "top5") not in rows


def test_what_is_written_can_be_read_and_is_the_same_again(place, tmp_path, monkeypatch):
    rows = evaluate(config(place, tmp_path / "eval"))
    files = {path: path.read_bytes() for path in (tmp_path / "eval").rglob("*") if path.is_file()}
    assert [json.loads(line) for line in (tmp_path / "eval/results.jsonl").read_text().splitlines()] == rows

    def refuse(self, *args, **kwargs):
        raise AssertionError("the model was used")

    monkeypatch.setattr(features.FileEmbedder, "model", property(refuse))
    assert evaluate(config(place, tmp_path / "eval")) == rows
    # A benchmark with other prompts needs its own texts, but not the images again.
    monkeypatch.undo()
    monkeypatch.setattr(features, "read_once", refuse)
    changed = evaluate(config(place, tmp_path / "eval", templates=("one {c}.", "{}")))
    assert changed[0]["fingerprint"] != rows[0]["fingerprint"]
    assert changed[-1] == rows[-1]
    again = {path: path.read_bytes() for path in files if "features" in path.parts or path.name == "captions.json"}
    assert all(files[path] == data for path, data in again.items())


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_results_do_not_depend_on_the_batch_size(place, tmp_path, batch_size):
    whole = evaluate(config(place, tmp_path / "whole"))
    other = evaluate(config(place, tmp_path / "other", batch_size=batch_size))
    assert other == whole


def test_a_missing_class_is_counted_and_keeps_its_column(place, tmp_path):
    row = evaluate(config(place, tmp_path / "eval", classes=("red", "green", "grey")))[0]
    assert row["empty_classes"] == 1
    assert row["other_classes"] > 0
    details = json.loads((tmp_path / "eval/details/colors.json").read_text())
    assert details["counts"][2] == 0
    assert sum(details["counts"]) == row["n"] == sum(n for _, _, n in details["confusion"])


def test_long_captions_are_cut_and_counted(place, tmp_path):
    samples = [{"image": make_image("red", i), "caption": f"{i} " + "very " * 30 * (i < 3) + "red"} for i in range(8)]
    make_dataset(tmp_path / "long", samples)
    benchmark = RetrievalConfig(name="captions", dataset=str(tmp_path / "long"))
    rows = evaluate(
        EvalConfig(model=str(place / "model.safetensors"), out=str(tmp_path / "eval"), benchmarks=(benchmark,))
    )
    assert {row["truncated"] for row in rows} == {3}


def test_corrupt_images_are_left_out_and_counted(place, tmp_path):
    samples = color_samples(12)
    samples[3]["image"] = b"\xff\xd8 no picture"
    make_dataset(tmp_path / "data", samples)
    (tmp_path / "model.safetensors").write_bytes((place / "model.safetensors").read_bytes())
    rows = evaluate(config(tmp_path, tmp_path / "eval", max_corrupt=0.1))
    assert {row["corrupt"] for row in rows} == {1}
    assert rows[-1]["n"] == sum(sample["image"] is not None for sample in samples) - 1


def test_the_same_image_and_the_same_caption_are_one_candidate(place, tmp_path):
    image = make_image("red", 0)
    samples = [
        {"image": image, "caption": "a red thing"},
        {"image": image, "caption": "a warm thing"},
        {"image": make_image("blue", 1), "caption": "a cold thing"},
        {"image": make_image("green", 2), "caption": "a cold thing"},
    ]
    make_dataset(tmp_path / "data", samples)
    benchmark = RetrievalConfig(name="captions", dataset=str(tmp_path / "data"))
    rows = evaluate(
        EvalConfig(model=str(place / "model.safetensors"), out=str(tmp_path / "eval"), benchmarks=(benchmark,))
    )
    by_metric = {row["metric"]: row for row in rows}
    assert (rows[0]["rows"], rows[0]["images"], rows[0]["texts"]) == (4, 3, 3)
    # One image has two positives of three texts, two have one; and so the other way round.
    assert by_metric["image_to_text_recall@1"]["chance"] == pytest.approx((2 / 3 + 1 / 3 + 1 / 3) / 3)
    assert by_metric["text_to_image_recall@1"]["chance"] == pytest.approx((2 / 3 + 1 / 3 + 1 / 3) / 3)


def test_bf16_is_another_protocol_and_close(place, tmp_path):
    full = evaluate(config(place, tmp_path / "full"))
    low = evaluate(config(place, tmp_path / "low", precision="bf16"))
    assert full[0]["fingerprint"] != low[0]["fingerprint"]
    assert abs(full[0]["value"] - low[0]["value"]) < 0.4


@pytest.mark.parametrize(
    ("benchmark", "message"),
    [
        ({"label_column": "colour"}, "no column 'colour'; did you mean 'color'"),
        ({"classes": ("rot", "redd")}, "none of its 17 labelled samples belongs to one of the 2 classes"),
        ({"selection": "nowhere"}, "no selection 'nowhere'"),
        ({"dataset": "/nowhere/data"}, "/nowhere/data holds no dataset"),
    ],
)
def test_bad_benchmarks(place, tmp_path, benchmark, message):
    with pytest.raises((ClipEvalError, ClipDataError), match=message):
        evaluate(config(place, tmp_path / "eval", **benchmark))
    assert not (tmp_path / "eval/results.jsonl").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "a/b"}, "'a/b' must be a word"),
        ({"dataset": ""}, "has no dataset"),
        ({"templates": ()}, "at least one template"),
        ({"templates": ("a photo",)}, "'a photo' has no {}"),
        ({"classes": ("a", "b"), "classes_file": "x.txt"}, "both classes and classes_file"),
        ({"max_corrupt": 1.5}, "max_corrupt 1.5 must be between 0 and 1"),
        ({"batch_size": 0}, "batch_size 0 must be at least 1"),
    ],
)
def test_benchmarks_are_checked_when_they_are_made(fields, message):
    with pytest.raises(ClipEvalError, match=message):
        ZeroShotConfig(**{"name": "x", "dataset": "data", **fields})


def test_a_retrieval_has_no_classes():
    table = {"name": "x", "kind": "retrieval", "dataset": "data", "classes": ["a", "b"]}
    with pytest.raises(ClipError, match=r"unknown key benchmarks\[0\].classes"):
        from_dict(EvalConfig, {"benchmarks": [table]})


def test_bad_models(place, tmp_path):
    good = config(place, tmp_path / "eval")
    with pytest.raises(ClipEvalError, match=r"cannot read the model .*nothing"):
        evaluate(replace(good, model=str(tmp_path / "nothing.safetensors")))
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes((place / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ClipModelsError, match="torn"):
        evaluate(replace(good, model=str(torn)))
    with pytest.raises(ClipEvalError, match="two benchmarks are named 'colors'"):
        evaluate(replace(good, benchmarks=(good.benchmarks[0], good.benchmarks[0])))
    with pytest.raises(ClipEvalError, match="no benchmark"):
        evaluate(replace(good, benchmarks=()))
    assert not (tmp_path / "eval").exists()


def test_a_folder_belongs_to_one_model(place, tmp_path):
    evaluate(config(place, tmp_path / "eval"))
    before = (tmp_path / "eval/results.jsonl").read_bytes()
    other = tiny_model(tmp_path / "other.safetensors", seed=1)
    with pytest.raises(ClipEvalError, match="holds results of another model"):
        evaluate(replace(config(place, tmp_path / "eval"), model=str(other)))
    assert (tmp_path / "eval/results.jsonl").read_bytes() == before


def test_rows_of_another_program_are_an_error_with_the_file(place, tmp_path):
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval/results.jsonl").write_text('{"task": "objects", "accuracy": 0.5}\n')
    with pytest.raises(ClipEvalError, match=r"eval/results\.jsonl .*row 1 has no 'benchmark'.* choose another folder"):
        evaluate(config(place, tmp_path / "eval"))


def test_rows_of_other_benchmarks_stay(place, tmp_path):
    both = evaluate(config(place, tmp_path / "eval"))
    first = config(place, tmp_path / "eval")
    evaluate(replace(first, benchmarks=first.benchmarks[1:]))
    lines = (tmp_path / "eval/results.jsonl").read_text().splitlines()
    assert sorted(lines) == sorted(json.dumps(row, ensure_ascii=False) for row in both)


def test_corrupt_samples_are_counted_beyond_the_length_of_any_list(place, tmp_path):
    readable = [{"image": make_image("red", i), "caption": f"good {i}"} for i in range(3)]
    damaged = [{"image": b"\xff\xd8 damaged", "caption": f"bad {i}"} for i in range(MAX_REPORTED + 50)]
    make_dataset(tmp_path / "data", readable + damaged, rows_per_unit=500)
    benchmark = RetrievalConfig(name="captions", dataset=str(tmp_path / "data"), max_corrupt=1.0)
    wanted = EvalConfig(model=str(place / "model.safetensors"), out=str(tmp_path / "eval"), benchmarks=(benchmark,))
    rows = evaluate(wanted)
    assert {(row["corrupt"], row["n"]) for row in rows} == {(MAX_REPORTED + 50, 3)}
    assert f"captions: {MAX_REPORTED + 50} images that could not be read" in format_table(rows)
    # What was computed under a high limit does not pass under a low one, neither from rows nor from features.
    low = replace(wanted, benchmarks=(replace(benchmark, max_corrupt=0.5),))
    with pytest.raises(ClipEvalError, match=r"1,050 of the 1,053 samples .* max_corrupt = 0\.5 allows"):
        evaluate(low)
    (tmp_path / "eval/details/captions.json").unlink()
    with pytest.raises(ClipEvalError, match=r"1,050 of the 1,053 samples"):
        evaluate(low)


def test_an_evaluation_of_truncated_shards_stops(place, tmp_path):
    samples = [{"image": make_image("red", i), "caption": f"number {i}", "color": "red"} for i in range(40)]
    dataset = make_dataset(tmp_path / "data", samples, rows_per_unit=4)
    for unit in dataset.units[::2]:
        shard = tmp_path / "data" / unit.shard_name
        shard.write_bytes(shard.read_bytes()[:512])
    (tmp_path / "model.safetensors").write_bytes((place / "model.safetensors").read_bytes())
    with pytest.raises(
        ClipEvalError, match=r"at least \d+ of the 40 samples of .*data cannot be read.*clip-data verify"
    ):
        evaluate(config(tmp_path, tmp_path / "eval"))
    assert not (tmp_path / "eval").exists()
    rows = evaluate(config(tmp_path, tmp_path / "eval", max_corrupt=0.5))
    assert {row["corrupt"] for row in rows} == {20}


def test_the_limit_is_a_share_that_may_be_reached(place, tmp_path):
    samples = [{"image": make_image("red", i), "caption": f"number {i}"} for i in range(100)]
    for sample in samples[:29]:
        sample["image"] = b"damaged"
    make_dataset(tmp_path / "data", samples, rows_per_unit=50)
    benchmark = RetrievalConfig(name="captions", dataset=str(tmp_path / "data"), max_corrupt=0.29)
    rows = evaluate(
        EvalConfig(model=str(place / "model.safetensors"), out=str(tmp_path / "eval"), benchmarks=(benchmark,))
    )
    assert rows[0]["corrupt"] == 29


def test_samples_without_a_caption_are_no_text(place, tmp_path):
    samples = [
        {"image": make_image("red", i), "caption": caption} for i, caption in enumerate(("a", "", "b", " \n", "c"))
    ]
    make_dataset(tmp_path / "data", samples)
    benchmark = RetrievalConfig(name="captions", dataset=str(tmp_path / "data"))
    wanted = EvalConfig(model=str(place / "model.safetensors"), out=str(tmp_path / "eval"), benchmarks=(benchmark,))
    rows = evaluate(wanted)
    assert {(row["uncaptioned"], row["n"], row["images"], row["texts"]) for row in rows} == {(2, 3, 3, 3)}
    assert "2 samples without a caption" in format_table(rows)
    make_dataset(tmp_path / "bare", samples[1::2])
    bare = replace(wanted, benchmarks=(replace(benchmark, dataset=str(tmp_path / "bare")),))
    with pytest.raises(ClipEvalError, match="none of its 2 samples has a caption"):
        evaluate(bare)


def test_details_of_another_protocol_are_made_again(place, tmp_path):
    rows = evaluate(config(place, tmp_path / "eval"))
    details = tmp_path / "eval/details/colors.json"
    before = details.read_text(encoding="utf-8")
    # As after a kill between the two files of a run with other prompts.
    details.write_text(json.dumps({**json.loads(before), "fingerprint": "other", "classes": []}), encoding="utf-8")
    assert evaluate(config(place, tmp_path / "eval")) == rows
    assert details.read_text(encoding="utf-8") == before


def test_the_limit_and_the_place_of_the_classes_do_not_change_the_protocol(place, tmp_path):
    names = ("red", "green", "blue")
    file = tmp_path / "names.txt"
    file.write_text("\n".join(names), encoding="utf-8")
    listed = evaluate(config(place, tmp_path / "a", classes=names))
    in_file = evaluate(config(place, tmp_path / "b", classes_file=str(file), max_corrupt=0.5))
    assert [row["fingerprint"] for row in listed] == [row["fingerprint"] for row in in_file]
    file.write_text("\n".join(reversed(names)), encoding="utf-8")
    assert evaluate(config(place, tmp_path / "b", classes_file=str(file)))[0]["fingerprint"] != listed[0]["fingerprint"]


def test_the_best_of_several_captions_is_the_one_that_is_shown(place, tmp_path):
    captions = [[f"{word} {color} {i}" for word in ("one", "two", "three")] for i, color in enumerate(COLORS)]
    samples = [
        {"image": make_image(color, i), "caption": caption}
        for i, color in enumerate(COLORS)
        for caption in captions[i]
    ]  # fmt: skip
    dataset = make_dataset(tmp_path / "data", samples)
    benchmark = RetrievalConfig(name="captions", dataset=dataset.url)
    evaluate(EvalConfig(model=str(place / "model.safetensors"), out=str(tmp_path / "eval"), benchmarks=(benchmark,)))
    images, texts = reference_features(place, samples)
    scores = (images @ texts.T)[::3].reshape(4, 4, 3)
    wanted = {captions[i][0]: captions[i][scores[i, i].argmax()] for i in range(4)}
    details = json.loads((tmp_path / "eval/details/captions.json").read_text(encoding="utf-8"))
    first = {dataset.units[0].key(0): captions[0][0], dataset.units[0].key(3): captions[1][0]}
    first |= {dataset.units[0].key(6): captions[2][0], dataset.units[1].key(1): captions[3][0]}
    assert {first[example["query"]]: example["best"] for example in details["image_to_text"]} == wanted
    assert any(best != name for name, best in wanted.items())
