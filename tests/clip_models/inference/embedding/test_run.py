"""clip_models.inference.embedding.run: the numbers, what is left out, and runs that are stopped at any moment."""

import json
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import clip_models
from clip_core import load_image
from clip_models import ClipModelsError
from clip_models.inference.embedding.parts import read_embeddings
from clip_models.inference.embedding.run import embed
from tests.support import embeddings
from tests.support.embeddings import MODEL, caption, image_bytes


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return embeddings.model_file(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def model(weights):
    return clip_models.create_model(MODEL, pretrained=weights).eval()


def expected_images(model, numbers):
    transform = clip_models.preprocess_eval(model.spec.preprocess)
    batch = torch.stack([transform(load_image(image_bytes(number))) for number in numbers])
    with torch.inference_mode():
        return model.encode_image(batch, normalize=True).numpy()


def expected_texts(model, texts):
    with torch.inference_mode():
        return model.encode_text(clip_models.get_tokenizer(model.spec)(texts), normalize=True).numpy()


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["parquet", "npy"])
def test_images_of_every_source_have_the_features_of_the_model(tmp_path, model, form):
    numbers = range(11)
    expected = expected_images(model, numbers)
    embeddings.folder(tmp_path / "folder", 11)
    (tmp_path / "tars").mkdir()
    embeddings.tar(tmp_path / "tars" / "0.tar", numbers[:6])
    embeddings.tar(tmp_path / "tars" / "1.tar", numbers[6:])
    embeddings.table(tmp_path / "a.parquet", numbers)
    values = [image_bytes(number) for number in numbers]
    for index, source in enumerate((tmp_path / "folder", tmp_path / "tars", tmp_path / "a.parquet", values)):
        output = tmp_path / f"out{index}"
        summary = embed(source, output, model=model, batch_size=4, part_rows=5, format=form)
        assert (summary.samples, summary.rows, summary.parts, summary.rejected) == (11, 11, 3, {})
        keys, found = read_embeddings(output)
        assert len(set(keys)) == 11
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


@pytest.mark.slow
def test_captions_and_pairs(tmp_path, model):
    texts = [caption(number) for number in range(7)] + ["word " * 60]
    (tmp_path / "captions.txt").write_text("\n".join(texts))
    summary = embed(tmp_path / "captions.txt", tmp_path / "texts", model=model, what="text", batch_size=3)
    assert summary.truncated == 1
    keys, found = read_embeddings(tmp_path / "texts", "text")
    assert keys == [str(number) for number in range(1, 9)]
    np.testing.assert_allclose(found, expected_texts(model, texts), atol=1e-6)
    table = embeddings.table(tmp_path / "a.parquet", range(7))
    for form in ("parquet", "npy"):
        embed(table, tmp_path / form, model=model, what="both", format=form, part_rows=4, dtype="float16")
        np.testing.assert_allclose(
            read_embeddings(tmp_path / form, "image")[1], expected_images(model, range(7)), atol=1e-3
        )
        keys, found = read_embeddings(tmp_path / form, "text")
        assert found.dtype == np.float16
        assert keys == [f"{number:06}" for number in range(7)]
        np.testing.assert_allclose(found, expected_texts(model, texts[:7]), atol=1e-3)
    schema = pq.read_schema(tmp_path / "parquet" / "part-000000.parquet")
    assert schema.names == ["key", "image_embedding", "text_embedding"]
    assert str(schema.field("text_embedding").type) == f"fixed_size_list<element: halffloat>[{model.spec.embed_dim}]"


def test_what_cannot_be_embedded_is_listed_with_its_reason(tmp_path, model):
    pairs = [
        {"key": "good", "image": image_bytes(0), "text": "a star"},
        {"key": "html", "image": b"<html>", "text": "a star"},
        {"key": "cut", "image": image_bytes(1)[:200], "text": "a star"},
        {"key": "large", "image": Image.new("RGB", (300, 300)).tobytes(), "text": "a star"},
        {"key": "gone", "image": str(tmp_path / "none.jpg"), "text": "a star"},
        {"key": "blind", "image": None, "text": "a star"},
        {"key": "mute", "image": image_bytes(2), "text": None},
        {"key": "empty", "image": image_bytes(3), "text": " \n"},
        {"key": "number", "image": 5, "text": "a star"},
        {"key": "also good", "image": load_image(image_bytes(4)), "text": "a circle"},
    ]
    (tmp_path / "large.png").write_bytes(embeddings.encode(Image.new("RGB", (300, 300)), "PNG"))
    pairs[3]["image"] = tmp_path / "large.png"
    summary = embed(pairs, tmp_path / "out", model=model, what="both", part_rows=4, max_pixels=80_000)
    reasons = {"empty_caption": 1, "missing": 1, "no_caption": 1, "no_image": 1, "too_large": 1, "undecodable": 3}
    assert summary.rejected == reasons
    assert (summary.samples, summary.rows) == (10, 2)
    assert read_embeddings(tmp_path / "out")[0] == ["good", "also good"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [(line["key"], line["code"]) for line in lines] == [
        ("html", "undecodable"), ("cut", "undecodable"), ("large", "too_large"), ("gone", "missing"),
        ("blind", "no_image"), ("mute", "no_caption"), ("empty", "empty_caption"), ("number", "undecodable"),
    ]  # fmt: skip
    assert all(line["reason"] for line in lines)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["complete"]
    assert manifest["rejected"] == reasons
    assert len(manifest["config"]["weights_sha256"]) == len(manifest["config"]["spec_sha256"]) == 64


def test_an_empty_source_and_one_of_rejects_only(tmp_path, model):
    (tmp_path / "pictures").mkdir()
    assert embed(tmp_path / "pictures", tmp_path / "none", model=model).parts == 0
    assert read_embeddings(tmp_path / "none")[1].shape == (0, model.spec.embed_dim)
    for form in ("npy", "parquet"):
        assert embed([b"x"], tmp_path / form, model=model, format=form).rejected == {"undecodable": 1}
        assert read_embeddings(tmp_path / form)[1].shape == (0, model.spec.embed_dim)


class Bomb(Exception):
    pass


def exploding(items, after):
    for number, item in enumerate(items):
        if number == after:
            raise Bomb
        yield item


@pytest.mark.parametrize("after", [0, 1, 7, 8, 15, 19])
def test_a_run_that_failed_goes_on_and_ends_the_same(tmp_path, model, after):
    values = [image_bytes(number) for number in range(18)] + [b"x", image_bytes(18)]
    options = {"model": model, "batch_size": 3, "part_rows": 8, "workers": 2}
    embed(values, tmp_path / "whole", **options)
    with pytest.raises(Bomb):
        embed(exploding(values, after), tmp_path / "out", **options)
    assert not (tmp_path / "out" / "rejects.jsonl").exists()
    with pytest.raises(ClipModelsError, match="is not finished; run the same embed command again"):
        read_embeddings(tmp_path / "out")
    parts = len(list((tmp_path / "out").glob("part-*.parquet")))
    assert parts == after // 8
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*.parquet")}
    embed(values, tmp_path / "out", **options)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in before.items())  # not made again


SCRIPT = """
import sys, time
from clip_models.inference.embedding import run
prepare = run._Run._prepare
def slowly(self, sample):
    time.sleep(0.004)
    return prepare(self, sample)
run._Run._prepare = slowly
from clip_models.cli import main
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_the_same(tmp_path, weights):
    """Killed at its start, and twice in the middle of a part."""
    embeddings.folder(tmp_path / "f", 120)
    (tmp_path / "f" / "bad.jpg").write_bytes(b"x")
    flags = ["embed", str(tmp_path / "f"), "--model", MODEL, "--pretrained", str(weights), "--format", "npy"]
    flags += ["--part-rows", "7", "--batch-size", "3", "--workers", "1"]
    command = [sys.executable, "-c", SCRIPT, *flags, "--output"]
    options = {"model": MODEL, "pretrained": weights, "format": "npy", "part_rows": 7, "batch_size": 3}
    embed(tmp_path / "f", tmp_path / "whole", **options)
    output = tmp_path / "out"
    for wanted in (0, 3, 9):
        process = subprocess.Popen([*command, str(output)], stderr=subprocess.PIPE)
        while len(list(output.glob("parts/*.json"))) < wanted and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stderr.close()
    left = {path.name for path in output.glob("parts/*.json")}
    assert 9 <= len(left) < 18
    embed(tmp_path / "f", output, **options)
    assert contents(output) == contents(tmp_path / "whole")


def test_a_folder_of_another_run_is_refused(tmp_path, model, weights):
    values = [image_bytes(number) for number in range(4)]
    embed(values, tmp_path / "out", model=model)
    before = contents(tmp_path / "out")
    for options, name in (
        ({"dtype": "float16"}, "dtype (float32, not float16)"),
        ({"normalize": False}, "normalize (True, not False)"),
        ({"part_rows": 5}, "part_rows (10000, not 5)"),
        ({"what": "text"}, "what (image, not text)"),
        ({"model": clip_models.create_model(MODEL, seed=1)}, "weights_sha256"),
    ):
        with pytest.raises(ClipModelsError) as caught:
            embed(values, tmp_path / "out", **{"model": model, **options})
        assert name in str(caught.value)
    assert contents(tmp_path / "out") == before
    embed(values, tmp_path / "out", model=MODEL, pretrained=weights, workers=2, batch_size=2)  # the same weights
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").touch()
    with pytest.raises(ClipModelsError, match="mine holds thesis; choose an empty folder"):
        embed(values, tmp_path / "mine", model=model)


def test_a_folder_in_which_nothing_was_made_is_free_for_another_run(tmp_path, model):
    """Otherwise the flag that was wrong could not be put right in the same folder."""
    path = embeddings.table(tmp_path / "a.parquet", range(2))
    with pytest.raises(ClipModelsError, match="has no column 'imgae'; it has key, image, caption"):
        embed(path, tmp_path / "out", model=model, image_column="imgae")
    assert sorted(contents(tmp_path / "out")) == ["manifest.json"]
    assert embed(path, tmp_path / "out", model=model, image_column="image").rows == 2
    assert read_embeddings(tmp_path / "out")[0] == ["000000", "000001"]
    with pytest.raises(ClipModelsError, match="made with another image_column"):
        embed(path, tmp_path / "out", model=model)


def test_a_path_that_cannot_be_read_is_named_in_the_reason(tmp_path, model):
    pq.write_table(pa.table({"key": ["first"], "image": ["gone.jpg"]}), tmp_path / "a.parquet")
    embed(tmp_path / "a.parquet", tmp_path / "out", model=model)
    assert f"{tmp_path}/gone.jpg cannot be read" in (tmp_path / "out" / "rejects.jsonl").read_text()


def test_a_source_that_has_changed_is_noticed(tmp_path, model):
    embeddings.folder(tmp_path / "f", 10)
    embed(tmp_path / "f", tmp_path / "out", model=model, part_rows=4)
    (tmp_path / "f" / "00" / "0000a.png").write_bytes(image_bytes(30))
    with pytest.raises(ClipModelsError, match="has changed since part 0"):
        embed(tmp_path / "f", tmp_path / "out", model=model, part_rows=4)
    (tmp_path / "f" / "00" / "0000a.png").unlink()
    for number in (8, 9):
        next((tmp_path / "f" / "02").glob(f"{number:04}.*")).unlink()
    with pytest.raises(ClipModelsError, match="has changed since part 2"):
        embed(tmp_path / "f", tmp_path / "out", model=model, part_rows=4)


def test_a_part_that_was_cut_off_is_made_again(tmp_path, model):
    values = [image_bytes(number) for number in range(9)]
    embed(values, tmp_path / "out", model=model, part_rows=4)
    whole = contents(tmp_path / "out")
    part = tmp_path / "out" / "part-000001.parquet"
    part.write_bytes(part.read_bytes()[:-10])
    (tmp_path / "out" / "part-000002.parquet").unlink()
    embed(values, tmp_path / "out", model=model, part_rows=4)
    assert contents(tmp_path / "out") == whole


@pytest.mark.slow
def test_a_source_is_read_no_faster_than_it_is_embedded(tmp_path, model):
    """Memory stays flat: what is under way does not grow with the source."""
    data, read, most = image_bytes(1), 0, 0
    encoded = 0

    def values():
        nonlocal read, most
        for _ in range(600):
            read += 1
            most = max(most, read - encoded)
            yield data

    class Counting(type(model)):
        def encode_image(self, image, normalize=False):
            nonlocal encoded
            encoded += len(image)
            return super().encode_image(image, normalize)

    counting = clip_models.create_model(MODEL, seed=0)
    counting.__class__ = Counting
    embed(values(), tmp_path / "out", model=counting, batch_size=8, workers=2)
    assert encoded == 600
    assert most <= 2 * 8 + 2 + 8 + 3  # waiting, being decoded, in the batch, at hand
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("read", "decode"))]


def test_numbers_that_are_not_finite_are_an_error(tmp_path):
    model = clip_models.create_model(MODEL, seed=0)
    with torch.no_grad():
        model.visual.proj.mul_(float("inf"))
    with pytest.raises(ClipModelsError, match="the image embedding of 0 is not finite in fp32 and float32"):
        embed([image_bytes(0)], tmp_path / "out", model=model)
    assert not list((tmp_path / "out").glob("part*.parquet"))


def test_impossible_options_are_refused(tmp_path, model):
    for options, message in (
        ({"what": "sound"}, "what 'sound' is unknown; choose from image, text, both"),
        ({"part_rows": 0}, "part_rows 0 must be positive"),
        ({"batchsize": 5}, "does not know one of batchsize; it takes what, format"),
    ):
        with pytest.raises(ClipModelsError, match=message):
            embed([], tmp_path / "out", model=model, **options)
    with pytest.raises(ClipModelsError, match="has random weights; name a file as pretrained"):
        embed([], tmp_path / "out", model=MODEL)
    with pytest.raises(ClipModelsError, match=r"has random weights; name a tag \(openai"):
        embed([], tmp_path / "out", model="ViT-B-32")
    with pytest.raises(ClipModelsError, match="is a URL: give a path"):
        embed([], "s3://bucket/out", model=model)
    assert not (tmp_path / "out").exists()


def test_a_source_that_is_not_there_claims_no_folder(tmp_path, monkeypatch):
    from clip_models.inference import encoder

    monkeypatch.setattr(encoder.Encoder, "load", lambda *_, **__: pytest.fail("the model was loaded first"))
    with pytest.raises(ClipModelsError, match="does not exist; check the source"):
        embed(tmp_path / "typo.parquet", tmp_path / "out", model=MODEL, pretrained="x")
    assert not (tmp_path / "out").exists()
