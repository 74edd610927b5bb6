from dataclasses import replace

import pytest
import torch

import clip_models
from clip_models import ClipModelsError, create_model
from clip_models.factory import load_checkpoint
from clip_models.specs.augmentation import AugmentationConfig

NAME = "ViT-Ti-4-24"


def test_a_seed_repeats_the_weights_and_leaves_the_generator(tiny):
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    again, other = create_model(NAME, seed=0), create_model(NAME, seed=1)
    assert torch.rand(1) == expected
    assert torch.equal(again.visual.proj, tiny.visual.proj)
    assert not torch.equal(other.visual.proj, tiny.visual.proj)


def test_without_a_seed_the_global_generator_decides():
    torch.manual_seed(1)
    first, second = create_model(NAME), create_model(NAME)
    torch.manual_seed(1)
    assert torch.equal(create_model(NAME).visual.proj, first.visual.proj)
    assert not torch.equal(first.visual.proj, second.visual.proj)


def test_a_model_without_memory_draws_nothing(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.nn.init, "xavier_uniform_", lambda tensor: asked.append(tensor.device.type) or tensor)
    before = torch.get_rng_state()
    model = create_model(NAME, device="meta")
    assert torch.equal(torch.get_rng_state(), before)
    assert set(asked) == {"meta"}  # not built on the CPU first
    wanted = create_model(NAME, seed=0).state_dict()
    found = model.state_dict()
    assert {name: tensor.shape for name, tensor in found.items()} == {name: t.shape for name, t in wanted.items()}
    assert all(tensor.is_meta for tensor in found.values())


def test_a_spec_of_ones_own_is_a_model():
    spec = clip_models.get_model_spec(NAME)
    spec = replace(spec, name="mine", vision=replace(spec.vision, layers=1))
    assert len(create_model(spec).visual.transformer.resblocks) == 1


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_low_precision_keeps_norms_and_embeddings(tiny, batch, precision, dtype):
    model = create_model(NAME, precision=precision, seed=0).eval()
    low = {name for name, parameter in model.named_parameters() if parameter.dtype == dtype}
    high = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32}
    assert low | high == set(model.state_dict())
    assert all("ln_" in name or "embedding" in name or name == "logit_scale" for name in high)
    assert not any("ln_" in name or "embedding" in name for name in low)
    with torch.no_grad():
        for mine, expected in zip(model(*batch)[:2], tiny(*batch)[:2], strict=True):
            assert mine.dtype == dtype
            assert 0 < (mine.float() - expected).abs().max().item() < 0.02


def test_create_model_and_transforms(batch):
    model, train, val = clip_models.create_model_and_transforms(NAME, seed=0)
    assert train.config == val.config == model.spec.preprocess
    assert train.augmentation == AugmentationConfig()
    _, train, _ = clip_models.create_model_and_transforms(NAME, seed=0, aug_cfg={"scale": [0.4, 1.0]})
    assert train.augmentation.scale == (0.4, 1.0)


def test_create_model_from_pretrained(tiny, tmp_path):
    clip_models.save_model(tmp_path / "m.safetensors", tiny, tiny.spec)
    model, val = clip_models.create_model_from_pretrained(NAME, tmp_path / "m.safetensors")
    assert not model.training
    assert torch.equal(model.visual.proj, tiny.visual.proj)
    assert val.config == tiny.spec.preprocess


def test_unknown_names_and_precisions_are_refused():
    with pytest.raises(ClipModelsError, match="did you mean ViT-B-32"):
        create_model("ViT-B-23")
    with pytest.raises(ClipModelsError, match="precision 'int3' is unknown; choose from fp32, fp16, bf16"):
        create_model(NAME, precision="int3")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jit": True}, "jit=True is not supported; use torch.compile"),
        ({"weights_only": False}, "weights_only=False would run code from the file"),
        ({"require_pretrained": True}, "no weights were named for ViT-Ti-4-24: name a tag or a file as pretrained"),
        ({"vision_cfg": {}}, "vision_cfg is called vision here"),
        ({"pretrained_image_path": "/no/such.pt"}, "there is no weights file /no/such.pt"),
    ],
)
def test_options_that_cannot_be_met(options, message):
    with pytest.raises(ClipModelsError, match=message):
        create_model(NAME, **options)


def test_options_reach_the_model(tiny, batch):
    model = create_model(NAME, seed=0, output_dict=True, init_logit_bias=-10, force_custom_text=True)
    assert set(model(*batch)) == {"image_features", "text_features", "logit_scale", "logit_bias"}
    assert model.logit_bias.item() == -10
    assert "text.token_embedding.weight" in model.state_dict()


def test_a_checkpoint_goes_into_a_model_whole_or_not_at_all(tiny, tmp_path):
    torch.save({"state_dict": {f"module.{k}": v for k, v in tiny.state_dict().items()}}, tmp_path / "epoch_1.pt")
    model = create_model(NAME, seed=9)
    load_checkpoint(model, tmp_path / "epoch_1.pt", device="meta")
    assert model.visual.proj.device.type == "cpu"  # where the model was, whatever the file is read to
    assert torch.equal(model.visual.proj, tiny.visual.proj)
    partial = {k: torch.zeros_like(v) for k, v in tiny.state_dict().items() if k != "ln_final.bias"}
    torch.save(partial, tmp_path / "partial.pt")
    with pytest.raises(ClipModelsError, match=r"1 missing \(ln_final.bias\)"):
        load_checkpoint(model, tmp_path / "partial.pt")
    assert torch.equal(model.visual.proj, tiny.visual.proj)
    with pytest.raises(ClipModelsError, match="requires that every tensor fits"):
        load_checkpoint(model, tmp_path / "epoch_1.pt", strict=False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_an_accelerator(tiny, batch, precision):
    model = create_model(NAME, precision=precision, device="cuda", seed=0).eval()
    compiled = torch.compile(model, fullgraph=True)
    tolerance = 1e-3 if precision == "fp32" else 0.02
    image, text = (value.cuda() for value in batch)
    with torch.no_grad():
        for run in (model, compiled):
            for mine, expected in zip(run(image, text)[:2], tiny(*batch)[:2], strict=True):
                assert (mine.float().cpu() - expected).abs().max().item() < tolerance


@pytest.mark.parametrize("device", ["warp", "cuda:99"])
def test_a_device_that_is_not_there_is_named(device):
    with pytest.raises(ClipModelsError, match=f"device '{device}' cannot be used"):
        clip_models.create_model("ViT-Ti-4-24", device=device)
