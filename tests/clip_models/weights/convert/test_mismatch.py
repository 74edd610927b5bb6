"""Weights of another architecture: the message names what differs and what they fit."""

import pytest
import torch

from clip_models import ClipModelsError, create_model, get_model_spec
from clip_models.model import build_model
from clip_models.specs.overrides import override_spec
from clip_models.weights.convert.huggingface import to_huggingface
from clip_models.weights.convert.mismatch import find_fitting
from clip_models.weights.load import load_pretrained, model_from_tensors

NAME = "ViT-Ti-4-24"


def refusal(call) -> str:
    with pytest.raises(ClipModelsError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def shapes_of(name):
    """The tensors of an architecture, without memory for them."""
    with torch.device("meta"):
        state = build_model(get_model_spec(name)).state_dict()
    return state | {key: torch.zeros(()) for key in state if key == "logit_bias"}


@pytest.fixture(scope="module")
def base_32():
    return shapes_of("ViT-B-32")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "causes", "absent"),
    [
        ("ViT-B-16", "image patch size 32 against 16; 2 of another shape", "force_image_size"),
        ("ViT-B-32-256", "image positions 50 against 65|has visual.positional_embedding", "patch size"),
        ("ViT-L-14", "image patch size 32 against 14; image width 768 against 1024", "force"),
        ("ViT-B-16-plus", "embed_dim 512 against 640", "force"),
        ("RN50", "image tower: a plain ViT against a ResNet", "patch size"),
        ("ViT-B-16-SigLIP", "image tower: a plain ViT against one of timm's", "force_preprocess"),
        ("coca_ViT-B-32", "caption tower: none against a decoder", "patch size"),
    ],
)
def test_weights_of_b_32_in_another_architecture(base_32, asked, causes, absent):
    if "SigLIP" in asked:
        pytest.importorskip("timm")
    message = refusal(lambda: model_from_tensors(get_model_spec(asked), base_32, "b32.pt"))
    assert any(cause in message for cause in causes.split("|")), message
    assert absent not in message
    assert message.endswith("; these weights fit ViT-B-32, ViT-B-32-quickgelu: ask for that architecture")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "asked", "cause"),
    [
        ("ViT-B-16-SigLIP", "ViT-B-16", "image tower: one of timm's against a plain ViT"),
        ("RN50", "RN101", "image layers 6 against 23"),
        ("roberta-ViT-B-32", "ViT-B-32", "text tower: one of transformers' against CLIP's transformer"),
        ("ViT-B-16-SigLIP", "ViT-B-16-SigLIP-i18n-256", "text vocabulary size 32000 against 250000"),
    ],
)
def test_the_cause_and_what_fits(weights, asked, cause):
    for library, mark in (("timm", "SigLIP"), ("transformers", "roberta")):
        if mark in weights + asked:
            pytest.importorskip(library)
    message = refusal(lambda: model_from_tensors(get_model_spec(asked), shapes_of(weights), "x.pt"))
    assert cause in message
    assert f"these weights fit {weights}" in message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"vision": {"patch_size": 8}}, "image patch size 4 against 8"),
        ({"vision": {"layers": 2}}, "image layers 4 against 2"),
        ({"vision": {"mlp_ratio": 2.0}}, "image MLP width 384 against 192"),
        ({"text": {"layers": 3}}, "text layers 2 against 3"),
        ({"text": {"vocab_size": 500}}, "text vocabulary size 49408 against 500"),
        ({"text": {"width": 128}}, "text width 64 against 128"),
        ({"embed_dim": 64}, "embed_dim 128 against 64"),
    ],
)
@pytest.mark.parametrize("layout", ["openclip", "huggingface"])
def test_each_size_is_a_cause(tiny, tmp_path, changes, cause, layout):
    tensors = to_huggingface(tiny)[1] if layout == "huggingface" else tiny.state_dict()
    torch.save(tensors, tmp_path / "x.pt")
    if "vocab_size" in str(changes):
        changes = changes | {"tokenizer": {"kind": "hf", "name": "x"}}
    message = refusal(lambda: load_pretrained(override_spec(tiny.spec, changes=changes), tmp_path / "x.pt"))
    assert f"does not fit 'ViT-Ti-4-24': {cause}" in message
    assert "force_image_size" not in message


def test_a_size_is_named_with_its_flag_where_nothing_else_differs(tiny):
    larger = override_spec(tiny.spec, image_size=32)
    assert "force_image_size=32x32, which resizes them" in refusal(
        lambda: model_from_tensors(larger, tiny.state_dict(), "x")
    )
    both = override_spec(larger, changes={"vision": {"layers": 2}})
    message = refusal(lambda: model_from_tensors(both, tiny.state_dict(), "x"))
    assert "image layers 4 against 2; image positions" in message or "image positions 37 against 65" in message
    assert "force_image_size" not in message


def test_weights_of_the_architecture_itself_are_not_sent_to_it_or_its_twin(base_32):
    state = {name: tensor.long() for name, tensor in base_32.items()}
    message = refusal(lambda: model_from_tensors(get_model_spec("ViT-B-32"), state, "b32.pt"))
    assert "not floating" in message
    assert "these weights fit" not in message


def test_fitting_architectures_are_exact(tiny):
    assert find_fitting(tiny.state_dict()) == [NAME]
    assert find_fitting(tiny.state_dict() | {"visual.more": torch.zeros(1)}) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_numbers_that_no_model_has(tiny, tmp_path, value):
    state = {name: tensor.double() for name, tensor in tiny.state_dict().items()}
    state["visual.proj"][3, 5] = value
    torch.save(state, tmp_path / "x.pt")
    assert "x.pt holds NaN or infinite numbers in 1 tensors (visual.proj)" in refusal(
        lambda: create_model(NAME, tmp_path / "x.pt")
    )
    assert "in 1 tensors (visual.proj)" in refusal(lambda: create_model(NAME, pretrained_image_path=tmp_path / "x.pt"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn])
def test_other_precisions_become_float32(tiny, tmp_path, dtype):
    from safetensors.torch import save_file

    state = {name: tensor.to(dtype) for name, tensor in tiny.state_dict().items()}
    save_file(state, tmp_path / "x.safetensors")
    torch.save(state, tmp_path / "x.pt")
    for name in ("x.safetensors", "x.pt"):
        model = create_model(NAME, tmp_path / name)
        assert torch.equal(model.visual.proj, state["visual.proj"].float())


def test_views_and_shared_storages_become_tensors_of_their_own(tiny, tmp_path):
    state = dict(tiny.state_dict())
    block = torch.stack([state["ln_final.weight"], state["ln_final.bias"]])
    state |= {"ln_final.weight": block[0], "ln_final.bias": block[1]}
    state["visual.proj"] = state["visual.proj"].T.contiguous().T
    torch.save(state, tmp_path / "x.pt")
    model = create_model(NAME, tmp_path / "x.pt")
    assert model.visual.proj.is_contiguous()
    with torch.no_grad():
        model.ln_final.weight.zero_()
    assert torch.equal(model.ln_final.bias, tiny.ln_final.bias)
    assert torch.equal(model.visual.proj, tiny.visual.proj)
