import sys

import pytest
import torch

from clip_models import ClipModelsError, get_model_spec, save_model
from clip_models.inference.quantization import quantize
from clip_models.model import build_model
from tests.clip_models.model.test_precision import FAMILIES, features_of

pytest.importorskip("torchao")
ON_CPU = ["int8-weight-only", "int8-dynamic", "fp8-weight-only"]


def make(family):
    torch.manual_seed(0)
    return build_model(FAMILIES[family]).eval()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ON_CPU)
@pytest.mark.parametrize("family", ["vit", "custom text", "coca", "modern", "hf", "timm"])
def test_features_stay_near(scheme, family, capsys):
    pytest.importorskip({"hf": "transformers", "timm": "timm"}.get(family, "torch"))
    model, spec = make(family), FAMILIES[family]
    expected, names = features_of(model, spec), list(model.state_dict())
    report = quantize(model, scheme)
    assert min(report.image_cosine, report.text_cosine) >= 0.99
    for quantised, full in zip(features_of(model, spec), expected, strict=True):
        assert torch.nn.functional.cosine_similarity(quantised, full, dim=-1).min() >= 0.99
        assert not torch.equal(quantised, full)
    assert min(report.layers.values()) >= 3
    assert report.bytes_after < 0.4 * report.bytes_before
    assert list(model.state_dict()) == names
    assert f"{scheme}: " in capsys.readouterr().out


def test_towers_are_quantised_one_by_one():
    model = make("vit")
    before = features_of(model, FAMILIES["vit"])
    report = quantize(model, "int8-dynamic", ("text",), verbose=False)
    after = features_of(model, FAMILIES["vit"])
    assert report.layers == {"text": 7}
    assert report.image_cosine == pytest.approx(1)
    assert torch.equal(after[0], before[0])
    assert not torch.equal(after[1], before[1])


def test_in_bf16():
    from clip_models.model.precision import apply_precision

    model = apply_precision(make("vit"), "bf16")
    assert quantize(model, "int8-weight-only", verbose=False).image_cosine >= 0.99


@pytest.mark.slow
def test_the_state_dict_can_be_kept(tmp_path):
    model, again = make("custom text"), make("custom text")
    quantize(model, "int8-dynamic", verbose=False)
    with pytest.raises(ClipModelsError, match="save_model takes the weights before quantize"):
        save_model(tmp_path / "quantised.safetensors", model, model.spec)
    assert list(tmp_path.iterdir()) == []
    torch.save(model.state_dict(), tmp_path / "quantised.pt")
    again.load_state_dict(torch.load(tmp_path / "quantised.pt", weights_only=True), assign=True)
    for ours, theirs in zip(*(features_of(m, FAMILIES["custom text"]) for m in (model, again)), strict=True):
        assert torch.equal(ours, theirs)


def refusal(*args, **options) -> str:
    with pytest.raises(ClipModelsError) as caught:
        quantize(*args, **options)
    return str(caught.value)


def test_what_cannot_be_is_refused_and_changes_nothing(monkeypatch):
    model = make("vit")
    expected = features_of(model, FAMILIES["vit"])
    assert "fp8-dynamic needs a GPU of compute capability 8.9" in refusal(model, "fp8-dynamic")
    assert "scheme 'int3' is unknown; choose from int8-weight-only" in refusal(model, "int3")
    assert "choose from image, text" in refusal(model, "int8-dynamic", ("audio",))
    assert "takes [batch, up to 12] token ids" in refusal(model, "int8-dynamic", text=torch.zeros(1, 99).long())
    import torchao.quantization

    calls = []

    def fail_at_the_third(layer, config):
        calls.append(layer)
        if len(calls) == 3:
            raise RuntimeError("no kernel for this")
        original(layer, config)

    original = torchao.quantization.quantize_
    monkeypatch.setattr(torchao.quantization, "quantize_", fail_at_the_third)
    assert "not possible for small on cpu: no kernel for this" in refusal(model, "int8-dynamic")
    for now, then in zip(features_of(model, FAMILIES["vit"]), expected, strict=True):
        assert torch.equal(now, then)


def test_twice_and_towers_without_linear_blocks_are_refused():
    model = make("vit")
    quantize(model, "int8-weight-only", verbose=False)
    assert "is quantised already" in refusal(model, "int8-weight-only")
    resnet = make("resnet")
    assert "the image tower of small has no linear layers" in refusal(resnet, "int8-dynamic")
    assert quantize(resnet, "int8-dynamic", ("text",), verbose=False).text_cosine >= 0.99


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    monkeypatch.setitem(sys.modules, "torchao", None)
    assert "pip install 'clip-models[quantize]'" in refusal(make("vit"), "int8-dynamic")


@pytest.mark.slow
def test_vit_b_32_at_full_size():
    torch.manual_seed(0)
    model = build_model(get_model_spec("ViT-B-32")).eval()
    report = quantize(model, "int8-dynamic")
    assert min(report.image_cosine, report.text_cosine) >= 0.99
    assert report.layers == {"image": 47, "text": 47}
