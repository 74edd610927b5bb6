import hashlib
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import clip_models
from clip_models import ClipModelsError, TokenizerConfig, load_model, save_model

NAME = "ViT-Ti-4-24"


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_model(path, tiny, tiny.spec, {"step": "100"})
    return path


def assert_same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert torch.equal(a[name], b[name]), name


def refusal(call) -> str:
    """The one line that `call` is refused with."""
    with pytest.raises(ClipModelsError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(source, target, tensors=None, **metadata):
    """`source` with changes, written by the published writer."""
    with safe_open(source, "pt") as file:
        described = file.metadata() | metadata
    save_file(load_file(source) if tensors is None else tensors, target, metadata=described)
    return target


def test_round_trip_is_exact(tiny, saved, batch):
    model, spec = load_model(saved, expect=NAME)
    assert spec == model.spec == tiny.spec
    assert_same_weights(model, tiny)
    assert all(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        for mine, expected in zip(model(*batch), tiny(*batch), strict=True):
            assert torch.equal(mine, expected)


def test_a_file_describes_itself_to_other_tools(tiny, saved):
    with safe_open(saved, "pt") as file:
        metadata = file.metadata()
    assert metadata["step"] == "100"
    assert metadata["format"] == "pt"
    assert json.loads(metadata["clip_models.spec"]) == tiny.spec.to_dict()
    tensors = load_file(saved)
    assert {name: t.shape for name, t in tensors.items()} == {name: t.shape for name, t in tiny.state_dict().items()}


def test_equal_weights_give_equal_bytes(tiny, saved, tmp_path):
    save_model(tmp_path / "again.safetensors", tiny, tiny.spec, {"step": "100"})
    assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()


def test_saving_replaces_and_leaves_nothing_else(tiny, tmp_path):
    path = tmp_path / "new" / "model.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"old")
    save_model(path, tiny, tiny.spec)
    load_model(path)
    assert os.listdir(path.parent) == [path.name]


def test_a_failed_save_leaves_the_old_file(tiny, saved, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_bytes(saved.read_bytes())

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    message = refusal(lambda: save_model(path, clip_models.create_model(NAME, seed=9), tiny.spec))
    assert "cannot write" in message
    assert "No space left" in message
    assert path.read_bytes() == saved.read_bytes()
    assert os.listdir(tmp_path) == [path.name]


def test_low_precision_models_are_stored_as_they_are_and_loaded_in_fp32(tiny, tmp_path):
    low = clip_models.create_model(NAME, precision="bf16", seed=0)
    save_model(tmp_path / "low.safetensors", low, low.spec)
    model, _ = load_model(tmp_path / "low.safetensors")
    assert load_file(tmp_path / "low.safetensors")["visual.proj"].dtype == torch.bfloat16
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.visual.proj, tiny.visual.proj.bfloat16().float())


def test_the_file_is_not_held_by_the_model(saved, tmp_path, tiny):
    path = tmp_path / "model.safetensors"
    path.write_bytes(saved.read_bytes())
    model, _ = load_model(path)
    path.write_bytes(b"")  # in place: a mapped file would take the weights with it
    assert_same_weights(model, tiny)


def test_preprocessing_and_tokenizer_travel(tiny, tmp_path):
    spec = replace(
        tiny.spec,
        name="my-model",
        preprocess=replace(tiny.spec.preprocess, mean=(0.5, 0.5, 0.5), resize_mode="squash"),
        tokenizer=TokenizerConfig(clean="whitespace"),
    )
    path = tmp_path / "model.safetensors"
    save_model(path, tiny, spec)
    assert load_model(path, expect="my-model")[1] == spec
    model, train, val = clip_models.create_model_and_transforms(NAME, pretrained=path)
    assert train.config == val.config == model.spec.preprocess == spec.preprocess
    assert clip_models.get_tokenizer(model.spec).clean == "whitespace"


@pytest.mark.parametrize("keep", [0, 5, 100, 2000, -1])
def test_truncated_files(saved, tmp_path, keep):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(saved.read_bytes()[:keep])
    assert "cut.safetensors is truncated or corrupted" in refusal(lambda: load_model(path))


def test_a_flipped_bit_is_found(saved, tmp_path):
    data = bytearray(saved.read_bytes())
    data[-1000] ^= 1
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(data)
    assert "flipped.safetensors is corrupted: its tensors do not have the SHA-256" in refusal(lambda: load_model(path))
    assert "SHA-256" in refusal(lambda: clip_models.create_model(NAME, pretrained=path))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"clip_models.format_version": "2"}, "is of format 2, this release reads 1; upgrade"),
        ({"clip_models.spec": "{"}, "has no valid description"),
        ({"clip_models.spec": "{}"}, "has no valid description: model spec lacks the key 'name'"),
        ({"clip_models.sha256": "0"}, "SHA-256"),
    ],
)
def test_damaged_descriptions(saved, tmp_path, metadata, message):
    path = rewrite(saved, tmp_path / "x.safetensors", **metadata)
    assert message in refusal(lambda: load_model(path))


def test_another_architecture_is_refused(saved):
    assert "holds 'ViT-Ti-4-24', not 'ViT-B-32'" in refusal(lambda: load_model(saved, expect="ViT-B-32"))
    message = refusal(lambda: clip_models.create_model("ViT-B-32", pretrained=saved))
    assert "holds 'ViT-Ti-4-24', not 'ViT-B-32': embed_dim 128 against 512; ask for that model" in message


def test_another_activation_is_refused(tiny, saved, tmp_path):
    quick = replace(tiny.spec, name="ViT-Ti-4-24-quickgelu", quick_gelu=True)
    assert "quick_gelu False against True" in refusal(lambda: clip_models.create_model(quick, pretrained=saved))
    message = refusal(lambda: save_model(tmp_path / "x.safetensors", tiny, quick))
    assert "does not describe the model: quick_gelu True against False" in message
    assert os.listdir(tmp_path) == []


def test_a_file_without_description_is_sent_to_create_model(tiny, tmp_path):
    path = tmp_path / "plain.safetensors"
    save_file(tiny.state_dict(), path)
    message = refusal(lambda: load_model(path))
    assert "does not say what it is; load it with create_model(name, pretrained=" in message
    assert_same_weights(clip_models.create_model(NAME, pretrained=path), tiny)


@pytest.mark.parametrize(
    ("prefix", "wrap"),
    [
        ("", lambda state: state),
        ("module.", lambda state: {"epoch": 3, "state_dict": state}),
        ("_orig_mod.", lambda state: {"state_dict": state, "optimizer": {"lr": 1e-3}}),
        ("module._orig_mod.", lambda state: state),
        ("_orig_mod.module.", lambda state: state),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_plain_checkpoints_load(tiny, tmp_path, prefix, wrap, suffix):
    path = tmp_path / f"epoch{suffix}"
    torch.save(wrap({prefix + name: tensor for name, tensor in tiny.state_dict().items()}), path)
    assert_same_weights(clip_models.create_model(NAME, pretrained=path), tiny)


def test_half_precision_and_one_element_scales_load(tiny, tmp_path):
    state = {name: tensor.half() for name, tensor in tiny.state_dict().items()}
    state["logit_scale"] = state["logit_scale"].reshape(1)
    torch.save(state, tmp_path / "half.pt")
    model = clip_models.create_model(NAME, pretrained=tmp_path / "half.pt")
    assert model.logit_scale.shape == ()
    assert torch.equal(model.visual.proj, tiny.visual.proj.half().float())


def test_wrong_tensors_are_counted_and_named(tiny, tmp_path):
    path = tmp_path / "wrong.pt"
    state = dict(tiny.state_dict())
    for layer in range(4):
        del state[f"visual.transformer.resblocks.{layer}.ln_1.bias"]
    state["logit_bias"] = torch.zeros(())
    state["text_projection"] = torch.zeros(32, 128)
    state["visual.class_embedding"] = torch.zeros(96, dtype=torch.int64)
    torch.save(state, path)
    message = refusal(lambda: clip_models.create_model(NAME, pretrained=path))
    assert "wrong.pt does not fit 'ViT-Ti-4-24'" in message
    assert "4 missing (visual.transformer.resblocks.0.ln_1.bias, " in message
    assert "resblocks.2.ln_1.bias, …)" in message
    assert "1 extra (logit_bias)" in message
    assert "1 of another shape (text_projection [32, 128] in place of [64, 128])" in message
    assert "1 not floating (visual.class_embedding torch.int64)" in message


def test_a_described_file_with_a_tensor_less_is_refused(saved, tmp_path):
    tensors = load_file(saved)
    del tensors["ln_final.bias"]
    path = rewrite(saved, tmp_path / "less.safetensors", tensors)
    assert "SHA-256" in refusal(lambda: load_model(path))


def test_tensors_given_twice_are_refused(tiny, tmp_path):
    state = dict(tiny.state_dict())
    torch.save(state | {"module.ln_final.bias": torch.ones(128)}, tmp_path / "twice.pt")
    assert "1 tensors twice" in refusal(lambda: clip_models.create_model(NAME, pretrained=tmp_path / "twice.pt"))


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize(
    ("dump", "load"),
    [
        (
            lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2)),
            lambda p: pickle.loads(p.read_bytes()),
        ),
        (torch.save, lambda path: torch.load(path, weights_only=False)),
    ],
    ids=["pickle", "torch"],
)
def test_no_pickle_is_executed(tmp_path, dump, load):
    fuse, path = tmp_path / "exploded", tmp_path / "x.pt"
    dump({"state_dict": {"logit_scale": Bomb(fuse)}}, path)
    message = refusal(lambda: clip_models.create_model(NAME, pretrained=path))
    assert "holds more than tensors, which is never unpickled" in message
    assert not fuse.exists()
    load(path)
    assert fuse.exists()  # the trap was armed


def test_damaged_checkpoints(tiny, tmp_path):
    whole = tmp_path / "whole.pt"
    torch.save(tiny.state_dict(), whole)
    for name, data in {"cut.pt": whole.read_bytes()[:-500], "empty.pt": b"", "text.bin": b"<html>404</html>"}.items():
        path = tmp_path / name
        path.write_bytes(data)
        assert f"{name} is damaged" in refusal(lambda path=path: clip_models.create_model(NAME, pretrained=path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no state dict but list"),
        ({}, "holds no state dict but dict"),
        ({"model": {"a": torch.zeros(1)}}, "its entry 'model' is of type dict"),
    ],
)
def test_checkpoints_without_a_state_dict(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pt")
    assert message in refusal(lambda: clip_models.create_model(NAME, pretrained=tmp_path / "x.pt"))


def test_names_that_cannot_be_read(tmp_path):
    (tmp_path / "weights.npz").write_bytes(b"x")
    assert "extension '.npz'; weights are read from .safetensors, .pt" in refusal(
        lambda: clip_models.create_model(NAME, pretrained=tmp_path / "weights.npz")
    )
    assert "there is no weights file openai" in refusal(lambda: clip_models.create_model(NAME, pretrained="openai"))
    assert "there is no weights file" in refusal(lambda: load_model(tmp_path))


def test_what_cannot_be_saved(tiny, tmp_path):
    target = tmp_path / "x.safetensors"
    wrapped = torch.nn.Sequential(tiny)
    assert "saved as .safetensors, not 'x.pt'" in refusal(lambda: save_model(tmp_path / "x.pt", tiny, tiny.spec))
    assert "takes a CLIP model, not Sequential" in refusal(lambda: save_model(target, wrapped, tiny.spec))
    assert "'format'" in refusal(lambda: save_model(target, tiny, tiny.spec, {"format": "x"}))
    assert "'step'" in refusal(lambda: save_model(target, tiny, tiny.spec, {"step": 3}))
    (tmp_path / "file").touch()
    assert "cannot write" in refusal(lambda: save_model(tmp_path / "file" / "x.safetensors", tiny, tiny.spec))
    double = clip_models.create_model(NAME).double()
    assert "is torch.float64; weights are float32" in refusal(lambda: save_model(target, double, tiny.spec))
    assert os.listdir(tmp_path) == ["file"]


def test_a_compiled_block_saves_under_its_plain_name(tiny, tmp_path):
    model = clip_models.create_model(NAME, seed=0)
    model.transformer.resblocks[0] = torch.compile(model.transformer.resblocks[0], backend="eager")
    save_model(tmp_path / "x.safetensors", model, model.spec)
    assert_same_weights(load_model(tmp_path / "x.safetensors")[0], tiny)


def test_digest_covers_names_types_and_shapes():
    from clip_models.tensorfiles import digest

    value = torch.arange(4.0)
    digests = {
        digest({"a": value}),
        digest({"b": value}),
        digest({"a": value.reshape(2, 2)}),
        digest({"a": value + 1}),
        digest({"a": torch.zeros(8, dtype=torch.bfloat16)}),
        digest({"a": torch.zeros(8, dtype=torch.float16)}),
    }
    assert len(digests) == 6
    expected = hashlib.sha256(b"a torch.float32 [4]\n".replace(b"torch.float32", b"F32") + value.numpy().tobytes())
    assert digest({"a": value}) == expected.hexdigest()
