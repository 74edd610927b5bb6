import hashlib
import json
import os
import pickle
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import clip_models
from clip_core import ClipError
from clip_models import (
    CLIPTextConfig,
    HFTextConfig,
    ModelSpec,
    ModernTextConfig,
    PreprocessConfig,
    ResNetConfig,
    TimmConfig,
    TokenizerConfig,
    ViTConfig,
    load_model,
    save_model,
)
from clip_models.model import build_model
from clip_models.specs import DecoderConfig

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
    with pytest.raises(ClipError) as caught:
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


@pytest.mark.parametrize("keep", [5, 100, 2000, -1])
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
        ({"clip_models.format_version": "2"}, "has format 2, this release reads 1; upgrade"),
        ({"clip_models.spec": "{"}, "has no valid description"),
        ({"clip_models.spec": "{}"}, "has no valid description: model spec: missing keys name, embed_dim"),
        ({"clip_models.sha256": "0"}, "SHA-256"),
    ],
)
def test_damaged_descriptions(saved, tmp_path, metadata, message):
    path = rewrite(saved, tmp_path / "x.safetensors", **metadata)
    assert message in refusal(lambda: load_model(path))


def test_another_architecture_is_refused(saved):
    assert "holds 'ViT-Ti-4-24', not 'ViT-B-32'" in refusal(lambda: load_model(saved, expect="ViT-B-32"))
    message = refusal(lambda: clip_models.create_model("ViT-B-32", pretrained=saved))
    assert "holds 'ViT-Ti-4-24', not 'ViT-B-32': embed_dim 128 against 512, vision." in message


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
    assert "has no description; load it with create_model(name, pretrained=" in message
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
    state["logit_bias_2"] = torch.zeros(())
    state["text_projection"] = torch.zeros(32, 128)
    state["visual.class_embedding"] = torch.zeros(96, dtype=torch.int64)
    torch.save(state, path)
    message = refusal(lambda: clip_models.create_model(NAME, pretrained=path))
    assert "wrong.pt does not fit 'ViT-Ti-4-24'" in message
    assert "4 missing (visual.transformer.resblocks.0.ln_1.bias, " in message
    assert "resblocks.2.ln_1.bias, …)" in message
    assert "1 extra (logit_bias_2)" in message
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
    assert "which is more than tensors and never unpickled; save its state dict alone" in message
    assert "weights_only" not in message  # torch's own message says how to run the code
    assert not fuse.exists()
    load(path)
    assert fuse.exists()  # the trap was armed


def test_damaged_checkpoints(tiny, tmp_path):
    whole = tmp_path / "whole.pt"
    torch.save(tiny.state_dict(), whole)
    torch.save(tiny.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save(tiny.state_dict(), tmp_path / "new.pt", pickle_protocol=4)
    files = {
        "cut.pt": (whole.read_bytes()[:-500], "cut.pt is damaged"),
        "cut-old.pt": ((tmp_path / "old.pt").read_bytes()[:-500], "cut-old.pt is damaged"),
        "noise.bin": (b"\x01\x00\x07" * 99, "noise.bin is damaged"),
        "new.pt": ((tmp_path / "new.pt").read_bytes(), "was pickled by another protocol than that of torch.save"),
        "pickle.pt": (pickle.dumps({"a": 1}, protocol=4), "is a pickle that torch.save did not write"),
    }
    for name, (data, expected) in files.items():
        path = tmp_path / name
        path.write_bytes(data)
        message = refusal(lambda path=path: clip_models.create_model(NAME, pretrained=path))
        assert expected in message
        assert "weights_only" not in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no state dict but list"),
        ({}, "holds no state dict but dict"),
        ({"net": {"a": torch.zeros(1)}}, "1 extra (net.a)"),
        ({"state_dict": {}, "args": Namespace(lr=1)}, "holds no weights but state_dict, args"),
        (Namespace(lr=1), "holds no state dict but argparse.Namespace"),
        ({"state_dict": {"visual.proj": torch.ones(2, 2), "logit_scale": 3}}, "holds state_dict.logit_scale as int"),
    ],
)
def test_checkpoints_without_a_state_dict(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pt")
    assert message in refusal(lambda: clip_models.create_model(NAME, pretrained=tmp_path / "x.pt"))


def test_names_that_cannot_be_read(tmp_path):
    (tmp_path / "weights.h5").write_bytes(b"\x01\x00")
    assert "extension '.h5'; weights are read from .safetensors, " in refusal(
        lambda: clip_models.create_model(NAME, pretrained=tmp_path / "weights.h5")
    )
    assert "has no pretrained tag 'openai'" in refusal(lambda: clip_models.create_model(NAME, pretrained="openai"))
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
    from clip_models.weights.tensorfiles import digest

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


TEXT = CLIPTextConfig(context_length=8, width=16, heads=2, layers=1)
ROBERTA = {
    "model_type": "roberta", "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 20, "pad_token_id": 1, "type_vocab_size": 1,
}  # fmt: skip
MT5 = {
    "model_type": "mt5", "vocab_size": 50, "d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 1, "num_heads": 2,
    "pad_token_id": 0,
}  # fmt: skip
SMALL = {"embed_dim": 32, "depth": 1, "num_heads": 2}
TOWERS = {
    "resnet": (ResNetConfig(image_size=64, layers=(1, 1, 1, 1), width=8, head_width=16), TEXT),
    "sin-cos": (ViTConfig(image_size=32, width=32, layers=1, head_width=16, pos_embed_type="sin_cos_2d"), TEXT),
    "modern text": (ViTConfig(image_size=32, width=32, layers=1, head_width=16), ModernTextConfig(
        eos_id=1, context_length=8, vocab_size=50, width=16, heads=2, layers=1)),
    "rotary EVA": (TimmConfig(model_name="eva02_base_patch16_clip_224", image_size=32, pool="token", proj="",
                              model_kwargs=SMALL | {"mlp_ratio": 2.0}), TEXT),
    "rotary PE": (TimmConfig(model_name="vit_pe_core_tiny_patch16_384", image_size=32, pool="map", proj="",
                             model_kwargs=SMALL), TEXT),
    "swin": (TimmConfig(model_name="swin_tiny_patch4_window7_224", image_size=56, model_kwargs={
        "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2]}), TEXT),
    "swin 2": (TimmConfig(model_name="swinv2_tiny_window8_256", image_size=64, model_kwargs={
        "embed_dim": 16, "depths": [2, 1], "num_heads": [1, 2]}), TEXT),
    "convnext": (TimmConfig(model_name="convnext_tiny", image_size=32, model_kwargs={
        "depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}), TEXT),
    "batch norms of timm": (TimmConfig(model_name="fastvit_mci0", image_size=64, proj="", model_kwargs={
        "layers": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 32]}), TEXT),
    "roberta": (ViTConfig(image_size=32, width=32, layers=1, head_width=16), HFTextConfig(
        model_name="x", config=ROBERTA, context_length=8)),
    "tied mt5": (ViTConfig(image_size=32, width=32, layers=1, head_width=16), HFTextConfig(
        model_name="x", config=MT5, context_length=8)),
}  # fmt: skip


@pytest.mark.parametrize(("vision", "text"), TOWERS.values(), ids=TOWERS)
def test_a_loaded_model_of_every_family_is_the_saved_one(tmp_path, vision, text):
    """Buffers that no file holds included: rotary tables, indices of relative positions."""
    for config, library in ((vision, "timm"), (text, "transformers")):
        if config.kind in ("timm", "hf"):
            pytest.importorskip(library)
    size = (vision.image_size, vision.image_size)
    spec = ModelSpec(
        name="x", embed_dim=16, vision=vision, text=text, preprocess=PreprocessConfig(size=size),
        tokenizer=TokenizerConfig() if text is TEXT else TokenizerConfig(kind="hf", name="x"),
    )  # fmt: skip
    torch.manual_seed(0)
    model = build_model(spec).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.fill_(7)
    save_model(tmp_path / "x.safetensors", model, spec)
    loaded = load_model(tmp_path / "x.safetensors")[0].eval()
    assert_same_weights(loaded, model)
    buffers = dict(loaded.named_buffers())
    assert buffers.keys() == dict(model.named_buffers()).keys()
    for name, buffer in model.named_buffers():
        assert torch.equal(buffers[name], buffer), name
    grads = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in loaded.named_parameters()} == grads
    batch = torch.randn(2, 3, *size), torch.randint(2, 50, (2, 8))
    with torch.no_grad():
        for mine, expected in zip(loaded(*batch), model(*batch), strict=True):
            assert torch.equal(mine, expected)


def test_a_coca_is_saved_and_loaded(tmp_path):
    spec = ModelSpec(
        name="x", embed_dim=16,
        vision=ViTConfig(image_size=32, width=32, layers=1, head_width=16, attentional_pool=True,
                         attn_pooler_queries=4, attn_pooler_heads=2, output_tokens=True),
        text=replace(TEXT, embed_cls=True, output_tokens=True),
        decoder=DecoderConfig(context_length=8, width=16, heads=2, layers=1),
        preprocess=PreprocessConfig(size=(32, 32)),
    )  # fmt: skip
    model = build_model(spec)
    save_model(tmp_path / "x.safetensors", model, spec)
    loaded, again = load_model(tmp_path / "x.safetensors")
    assert again == spec
    assert type(loaded) is type(model)
    assert_same_weights(loaded, model)
