"""The commands embed, classify and list, as a user calls them."""

import json

import numpy as np
import pytest
import torch

import clip_models
from clip_models.cli import main
from clip_models.inference.embedding.parts import read_embeddings
from tests.support import embeddings
from tests.support.embeddings import MODEL
from tests.support.images import encode, noise


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return str(embeddings.model_file(tmp_path_factory.mktemp("weights")))


@pytest.fixture
def call(capsys):
    """Runs a command; gives its exit code, standard output and standard error."""

    def run(*args):
        with pytest.raises(SystemExit) as caught:
            main(list(map(str, args)))
        captured = capsys.readouterr()
        return caught.value.code, captured.out, captured.err

    return run


def test_embed(tmp_path, call, weights):
    embeddings.folder(tmp_path / "f", 5)
    (tmp_path / "f" / "bad.jpg").write_bytes(b"x")
    flags = ("embed", tmp_path / "f", "--model", MODEL, "--pretrained", weights, "--output", tmp_path / "out")
    code, out, _ = call(*flags, "--dtype", "float16", "--part-rows", 3)
    assert code == 0
    assert f"5 of 6 samples are now embeddings in {tmp_path / 'out'}" in out
    assert "1 rejected: undecodable" in out
    keys, found = read_embeddings(tmp_path / "out")
    assert len(keys) == len(found) == 5
    code, out, err = call(*flags)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: output ")
    assert "dtype (float16, not float32)" in err


def test_classify(tmp_path, call, weights):
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(encode(noise(30, 40, number), "PNG"))
    flags = ("--labels", "a cat", "a dog", "--model", MODEL, "--pretrained", weights)
    code, out, _ = call("classify", tmp_path / "0.png", *flags)
    assert code == 0
    title, *rows = out.splitlines()
    assert title.split() == ["label", "probability", "similarity"]
    assert {row[:5] for row in rows} == {"a cat", "a dog"}
    code, out, _ = call("classify", tmp_path / "0.png", tmp_path / "1.png", *flags, "--template", "a photo of {}")
    assert [line for line in out.splitlines() if line.endswith(":")] == [f"{tmp_path}/0.png:", f"{tmp_path}/1.png:"]
    code, out, _ = call("classify", tmp_path / "0.png", *flags, "--json")
    (found,) = json.loads(out)
    assert found["image"] == str(tmp_path / "0.png")
    assert sum(label["probability"] for label in found["labels"]) == pytest.approx(1)


def test_what_classify_cannot_do_is_one_line(tmp_path, call, weights, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    image, broken = tmp_path / "a.png", tmp_path / "b.png"
    image.write_bytes(encode(noise(30, 40), "PNG"))
    broken.write_bytes(b"x")
    labels = ("--labels", "a", "b")
    for flags, message in (
        ((image, *labels, "--model", MODEL), "random weights; name a file as pretrained"),
        ((image, *labels, "--model", "ViT-B-32"), "random weights; name a tag (openai"),
        ((image, *labels, "--pretrained", weights), "needs --model"),
        ((image, *labels, "--model", "ViT-B-33", "--pretrained", "openai"), "unknown model 'ViT-B-33'; did you mean"),
        ((broken, *labels, "--model", MODEL, "--pretrained", weights), "b.png does not decode as an image"),
        ((tmp_path / "c.png", *labels, "--model", MODEL, "--pretrained", weights), "c.png cannot be read"),
        ((image, "--labels", "a", "a", "--model", MODEL, "--pretrained", weights), "label 'a' is given twice"),
        ((labels), "needs at least one image"),
        (
            (image, *labels, "--model", MODEL, "--pretrained", weights, "--device", "warp"),
            "device 'warp' cannot be used",
        ),
    ):
        code, out, err = call("classify", *flags)
        assert (code, out) == (2, "")
        assert message in err
        assert len(err.splitlines()) == 1


def test_list(call):
    code, out, _ = call("list", "vit-b-32")
    assert code == 0
    title, *rows = out.splitlines()
    assert title.split() == ["model", "image", "text", "dim", "tags"]
    assert {row.split()[0] for row in rows} >= {"ViT-B-32", "ViT-B-32-quickgelu"}
    assert next(row for row in rows if row.startswith("ViT-B-32 ")).split()[1:5] == ["224", "77", "512", "openai"]
    code, out, _ = call("list", "ViT-?-32*", "--pretrained", "--format", "json")
    rows = json.loads(out)
    assert all(row["tags"] for row in rows)
    assert {"model", "image_size", "context_length", "embed_dim", "tags"} == set(rows[0])
    assert "ViT-Ti-4-24" not in call("list", "--pretrained")[1]
    code, out, err = call("list", "resnext")
    assert (code, out, err) == (2, "", "error: no architecture matches 'resnext'; clip-models list names them all\n")


def test_weights_with_quick_gelu(tmp_path, call):
    model = clip_models.create_model(MODEL, seed=3, force_quick_gelu=True)
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.png").write_bytes(encode(noise(30, 40), "PNG"))
    weights = ("--model", MODEL, "--pretrained", tmp_path / "bare.pt", "--quick-gelu", "--device", "cpu")
    _, out, _ = call("classify", tmp_path / "pictures/a.png", "--labels", "a cat", "--json", *weights)
    (expected,) = clip_models.classify([noise(30, 40)], ["a cat"], model=model)
    assert json.loads(out)[0]["labels"][0]["similarity"] == pytest.approx(expected[0].similarity, abs=1e-6)
    assert call("embed", tmp_path / "pictures", "--output", tmp_path / "out", *weights)[0] == 0
    with torch.no_grad():
        image = clip_models.preprocess_eval(model.spec.preprocess)(noise(30, 40))
        features = model.eval().encode_image(image[None], normalize=True)
    np.testing.assert_allclose(read_embeddings(tmp_path / "out")[1], features, atol=1e-6)


def test_a_run_that_embeds_nothing_fails(tmp_path, call, weights):
    (tmp_path / "captions.txt").write_text("a cat\na dog\n")
    flags = ("--output", tmp_path / "out", "--model", MODEL, "--pretrained", weights)
    code, out, err = call("embed", tmp_path / "captions.txt", *flags)
    assert code == 2
    assert "2 rejected: missing" in out
    assert err.splitlines()[-1].startswith("error: nothing was embedded; the first reason: ")
    assert "a cat cannot be read: No such file" in err
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.md").touch()
    code, out, err = call("embed", tmp_path / "empty", *flags[2:], "--output", tmp_path / "none")
    assert (code, err.splitlines()[-1]) == (2, "error: nothing was embedded; the source holds no samples")
    assert "1 not used: not_asked (see unused.jsonl)" in out
