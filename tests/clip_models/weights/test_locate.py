"""Every way to name weights, from the name to the model, and every mismatch that must not pass."""

import json
import warnings
from dataclasses import replace

import fsspec
import pytest
import torch
from safetensors.torch import save, save_file

import clip_models
from clip_models import ClipModelsError, create_model, get_model_spec, save_model
from clip_models.specs.openclip import to_open_clip_config
from clip_models.weights import registry
from clip_models.weights.locate import Source, settle
from clip_models.weights.registry import PretrainedTag, find_tag
from tests.support.hub import Hub

NAME = "ViT-Ti-4-24"
SIGLIP = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "resize_mode": "squash"}
WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"


@pytest.fixture
def server(monkeypatch):
    with Hub().running() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
        yield server


@pytest.fixture(scope="module")
def siglip_spec():
    """The tiny architecture with SigLIP's preprocessing of images."""
    spec = get_model_spec(NAME)
    return replace(spec, preprocess=replace(spec.preprocess, **SIGLIP))


@pytest.fixture(scope="module")
def files(tiny, siglip_spec):
    """What OpenCLIP puts into a repository: weights that say nothing, and the config beside them."""
    config = json.dumps(to_open_clip_config(siglip_spec)).encode()
    return {WEIGHTS: save(tiny.state_dict()), CONFIG: config}


@pytest.fixture
def folder(files, tmp_path):
    for name, body in files.items():
        (tmp_path / name).write_bytes(body)
    return tmp_path


@pytest.fixture
def tagged(monkeypatch):
    """Gives the tiny architecture a tag."""

    def add(**fields):
        row = PretrainedTag(model=NAME, tag="tiny_e1", **{**SIGLIP, "hub": "org/tiny", **fields})
        table = {**registry._table(), NAME: {"tiny_e1": row}}
        monkeypatch.setattr(registry, "_table", lambda: table)
        return row

    return add


def refusal(call) -> str:
    with pytest.raises(ClipModelsError) as caught:
        call()
    return str(caught.value)


def assert_is_siglip(model, tiny):
    assert torch.equal(model.visual.proj, tiny.visual.proj)
    assert {key: getattr(model.spec.preprocess, key) for key in SIGLIP} == SIGLIP


def test_a_tag_brings_its_preprocessing_and_is_then_offline(server, files, tiny, tagged, tmp_path):
    tagged()
    server.add("org/tiny", {WEIGHTS: files[WEIGHTS]})
    model, train, val = clip_models.create_model_and_transforms(NAME, "Tiny-E1", cache_dir=tmp_path)
    assert_is_siglip(model, tiny)
    assert train.config == val.config == model.spec.preprocess
    server.requests.clear()
    assert_is_siglip(create_model(NAME, "tiny_e1", cache_dir=tmp_path), tiny)
    assert server.requests == []


def test_a_hub_repository_is_a_whole_model(server, files, tiny, tmp_path):
    repo = server.add("org/tiny", dict(files))
    model, _ = clip_models.create_model_from_pretrained("hf-hub:org/tiny", cache_dir=tmp_path)
    assert_is_siglip(model, tiny)
    assert model.spec.name == "tiny"
    server.requests.clear()
    assert_is_siglip(create_model(f"hf-hub:org/tiny@{repo.commit}", cache_dir=tmp_path), tiny)
    assert_is_siglip(create_model(NAME, "hf-hub:org/tiny", cache_dir=tmp_path), tiny)
    assert server.requests == []


def test_a_hub_model_stays_of_one_commit_while_its_branch_moves(server, files, tiny, tmp_path):
    from clip_models.weights import hub

    repo = server.add("org/tiny", dict(files))
    hub.download_file("org/tiny", CONFIG, cache_dir=tmp_path)
    old = repo.commit
    server.routes["HEAD", f"/org/tiny/resolve/{old}/{WEIGHTS}"] = lambda handler, request: handler.reply(503, b"")
    repo.files[WEIGHTS] = b"of another commit"
    message = refusal(lambda: create_model("hf-hub:org/tiny", cache_dir=tmp_path))
    assert f"/org/tiny/resolve/{old}/{WEIGHTS}" in server.paths("HEAD")
    assert "HTTP 503" in message


@pytest.mark.slow
def test_a_repository_of_transformers_is_a_whole_model_and_then_offline(server, tiny, siglip_spec, tmp_path):
    from clip_models.weights.convert.huggingface import to_huggingface

    config, tensors = to_huggingface(tiny)
    processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3, "size": {"height": 24, "width": 24}}
    weights = save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"format": "pt"})
    files = {"config.json": config, "preprocessor_config.json": processor}
    server.add("org/hf", {name: json.dumps(data).encode() for name, data in files.items()})
    server.add("org/hf", {"model.safetensors": weights})
    assert_is_siglip(create_model("hf-hub:org/hf", cache_dir=tmp_path), tiny)
    server.requests.clear()
    assert_is_siglip(create_model("hf-hub:org/hf", cache_dir=tmp_path), tiny)
    assert server.requests == []


def test_without_weights_nothing_but_the_description_is_fetched(server, files, tagged, tmp_path):
    server.add("org/tiny", dict(files))
    tagged()
    for model, source in (("hf-hub:org/tiny", None), (NAME, "hf-hub:org/tiny"), (NAME, "tiny_e1")):
        spec = create_model(model, source, load_weights=False, cache_dir=tmp_path).spec
        assert spec.preprocess.resize_mode == "squash"
    assert not any("/storage/" in request.path for request in server.requests)


@pytest.mark.parametrize("way", ["local-dir", "folder", "file", "path", "file url"])
def test_local_weights_with_their_config(folder, tiny, way):
    source = {
        "local-dir": f"local-dir:{folder}",
        "folder": str(folder),
        "file": str(folder / WEIGHTS),
        "path": folder / WEIGHTS,
        "file url": f"file://{folder / WEIGHTS}",
    }[way]
    assert_is_siglip(create_model(NAME, source), tiny)
    if way != "path":
        assert_is_siglip(create_model(source), tiny)


def test_a_url_is_a_source(tiny, siglip_spec, tmp_path):
    save_model(tmp_path / "m.safetensors", tiny, siglip_spec)
    fsspec.filesystem("memory").pipe("/models/m.safetensors", (tmp_path / "m.safetensors").read_bytes())
    url = "memory://models/m.safetensors"
    assert_is_siglip(create_model(url, cache_dir=tmp_path / "cache"), tiny)
    assert_is_siglip(create_model(NAME, url, cache_dir=tmp_path / "cache"), tiny)


def test_openclip_issue_771_quickgelu_weights_do_not_enter_a_gelu_model(server, tiny, tmp_path):
    """There "ViT-B-32" with "openai" runs with QuickGELU, and what is fine-tuned from it is later run with GELU."""
    message = refusal(lambda: create_model("ViT-B-32", "openai", cache_dir=tmp_path))
    assert "ViT-B-32-quickgelu or force_quick_gelu=True" in message
    assert server.requests == []  # known before anything is fetched
    quick = create_model(replace(tiny.spec, quick_gelu=True), seed=0)
    save_model(tmp_path / "tuned.safetensors", quick, quick.spec)
    assert "force_quick_gelu=True" in refusal(lambda: create_model(NAME, tmp_path / "tuned.safetensors"))
    assert create_model(NAME, tmp_path / "tuned.safetensors", force_quick_gelu=True).spec.quick_gelu


def test_every_tag_enters_an_architecture_of_its_activation_alone():
    """And every one whose architecture has the other activation names a way that is there."""
    for name, tag in registry.list_pretrained():
        row, spec = find_tag(name, tag), get_model_spec(name)
        source = Source(name=tag, tag=row)
        if row.quick_gelu != spec.quick_gelu:
            twin = f"{name}-quickgelu"
            assert f"{twin} or force_quick_gelu=True" in refusal(lambda spec=spec, source=source: settle(spec, source))
            assert registry.is_pretrained_cfg(twin, tag)
            spec = get_model_spec(twin)
        assert settle(spec, source).quick_gelu == spec.quick_gelu == row.quick_gelu
        assert settle(spec, source).preprocess == row.preprocess(spec.preprocess.size)


def test_quickgelu_tags(server, files, tagged, tmp_path):
    tagged(quick_gelu=True)
    server.add("org/tiny", {WEIGHTS: files[WEIGHTS]})
    assert "force_quick_gelu=True" in refusal(lambda: create_model(NAME, "tiny_e1", cache_dir=tmp_path))
    assert create_model(NAME, "tiny_e1", force_quick_gelu=True, cache_dir=tmp_path).spec.quick_gelu
    tagged(quick_gelu=False)
    message = refusal(lambda: create_model(NAME, "tiny_e1", force_quick_gelu=True, cache_dir=tmp_path))
    assert "trained with GELU" in message


def test_openclip_issue_1068_siglip_weights_keep_siglip_preprocessing_offline(server, files, tiny, tmp_path):
    """There the file of a downloaded repository, given as pretrained=, gets CLIP's mean, std and crop in silence."""
    server.add("org/tiny", dict(files))
    online, transform = clip_models.create_model_from_pretrained("hf-hub:org/tiny", cache_dir=tmp_path)
    [file] = tmp_path.rglob(f"snapshots/*/{WEIGHTS}")
    offline, again = clip_models.create_model_from_pretrained(NAME, str(file))
    assert_is_siglip(offline, tiny)
    assert transform.config == again.config == online.spec.preprocess


def test_an_architecture_has_the_preprocessing_on_which_its_tags_agree():
    """So that also weights without any description get it: issue 1068 with the file alone."""
    for model in dict.fromkeys(model for model, _ in registry.list_pretrained()):
        spec = get_model_spec(model)
        rows = [find_tag(model, tag) for tag in registry.list_pretrained_tags_by_model(model)]
        if len(found := {row.preprocess(spec.preprocess.size) for row in rows}) == 1:
            assert spec.preprocess == found.pop(), model


def test_the_usual_preprocessing_can_be_overridden_only_in_so_many_words(folder):
    model, _, val = clip_models.create_model_and_transforms(
        NAME, folder, image_mean=(0.1, 0.2, 0.3), force_preprocess_cfg={"std": [0.9, 0.9, 0.9]}
    )
    assert val.config == model.spec.preprocess
    assert (val.config.mean, val.config.std, val.config.resize_mode) == ((0.1, 0.2, 0.3), (0.9,) * 3, "squash")


def test_what_bare_weights_leave_open_is_said(tiny, tmp_path):
    save_file(tiny.state_dict(), tmp_path / "bare.safetensors")
    source = Source(name="bare.safetensors", weights=tmp_path / "bare.safetensors")
    with pytest.warns(UserWarning, match="bare.safetensors does not say its activation: GELU is used, ViT-L-14-quick"):
        settle(get_model_spec("ViT-L-14"), source)
    with pytest.warns(UserWarning, match=r"nor its preprocessing: mean \(0.481, 0.458, 0.408\) and resize_mode short"):
        settle(get_model_spec("ViT-L-14"), source)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settle(get_model_spec("ViT-SO400M-16-SigLIP2-384"), source)
        create_model(NAME, tmp_path / "bare.safetensors")


def test_another_network_is_refused(folder, tiny):
    other = replace(tiny.spec, name="other", vision=replace(tiny.spec.vision, layers=2))
    assert "vision.layers" in refusal(lambda: create_model(other, folder))


@pytest.mark.parametrize(
    ("model", "source", "message"),
    [
        ("ViT-B-23", None, "unknown model 'ViT-B-23'; did you mean ViT-B-32"),
        ("", None, "unknown model ''; 'clip-models list' or list_models() names them all"),
        ("ViT-B-32", "laion2b_s34b_b97k", "did you mean laion2b_s34b_b79k"),
        ("ViT-B-32", "webli", "ViT-B-32 has no pretrained tag 'webli'; architectures that have it: ViT-B-16-SigLIP"),
        ("ViT-B-32", "no/such/file.pt", "there is no weights file no/such/file.pt"),
        ("ViT-B-32", "model.safetensors", "there is no weights file model.safetensors"),
        ("ViT-B-32", "hf-hub:", "names no repository; the form is hf-hub:org/name"),
        ("hf-hub:a/b/c", None, "is not a repository of the hub"),
        ("local-dir:/no/such/folder", None, "there is no folder /no/such/folder"),
        ("local-dir:", None, "'local-dir:' names no folder"),
        ("hf-hub:org/name", "openai", "has its own weights: leave pretrained='openai' out"),
        ("ViT-B-32", "nope://bucket/x.pt", "nope://bucket/x.pt cannot be read"),
        ("ViT-B-32", "ftp://127.0.0.1:1/x.pt", "ftp://127.0.0.1:1/x.pt does not answer"),
    ],
)
def test_names_that_lead_nowhere(model, source, message):
    assert message in refusal(lambda: create_model(model, source))


def test_a_folder_without_a_choice(tmp_path, tiny):
    assert "there are no weights in" in refusal(lambda: create_model(NAME, tmp_path))
    for name in ("a.safetensors", "b.safetensors"):
        save_file(tiny.state_dict(), tmp_path / name)
    assert "a.safetensors, b.safetensors" in refusal(lambda: create_model(NAME, tmp_path))
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    assert "parts of weights (a.safetensors, b.safetensors, model-00001-of-00002" in (
        found := refusal(lambda: create_model(NAME, tmp_path))
    )
    assert "without their model*.index.json; fetch it too" in found
    message = refusal(lambda: create_model(f"{tmp_path}/a.safetensors"))
    assert "has no description; load it with create_model(architecture, pretrained=" in message


def test_a_damaged_config_is_named(folder):
    (folder / CONFIG).write_text("{")
    assert CONFIG in refusal(lambda: create_model(f"local-dir:{folder}"))


def test_a_forced_size_resizes_the_positions(folder, tiny):
    model = create_model(NAME, folder, force_image_size=32, force_context_length=16)
    assert model.spec.preprocess.size == (32, 32)
    assert model.spec.preprocess.resize_mode == "squash"
    assert model.visual(torch.zeros(1, 3, 32, 32)).shape == (1, tiny.spec.embed_dim)
    assert model.positional_embedding.shape[0] == 16


def test_model_configs(folder, tiny):
    config = clip_models.factory.get_model_config(f"local-dir:{folder}")
    assert config["embed_dim"] == tiny.spec.embed_dim
    assert clip_models.factory.get_model_config("ViT-B/32")["vision_cfg"]["patch_size"] == 32
    assert clip_models.factory.get_model_config("ViT-B-99") is None
    assert clip_models.factory.get_model_preprocess_cfg(tiny)["size"] == [24, 24]
    assert clip_models.factory.get_model_tokenize_cfg(tiny) == {
        "context_length": tiny.spec.text.context_length,
        "vocab_size": tiny.spec.text.vocab_size,
    }
