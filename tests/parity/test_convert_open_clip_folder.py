"""Folders that we write for OpenCLIP, loaded by it, and its own loaded by us."""

import json
from dataclasses import replace

import pytest
import torch

from clip_models import CLIPTextConfig, ModelSpec, PreprocessConfig, ResNetConfig, TokenizerConfig, ViTConfig
from clip_models.model import build_model
from clip_models.specs import DecoderConfig
from clip_models.weights.convert.folders import save_open_clip
from clip_models.weights.load import describe_source, load_pretrained

open_clip = pytest.importorskip("open_clip")
pytestmark = pytest.mark.parity

TEXT = CLIPTextConfig(context_length=8, width=16, heads=2, layers=1)
VIT = ModelSpec(
    name="tiny",
    embed_dim=16,
    vision=ViTConfig(image_size=32, patch_size=8, width=32, layers=1, head_width=16),
    text=TEXT,
    preprocess=PreprocessConfig(
        size=(32, 32), mean=(0.5, 0.4, 0.3), std=(0.3, 0.4, 0.5), interpolation="bilinear", resize_mode="squash"
    ),
)
SPECS = {
    "vit": VIT,
    "quickgelu": replace(VIT, quick_gelu=True),
    "bias, text under text.": replace(VIT, custom_text=True, init_logit_bias=-10.0),
    "resnet": replace(
        VIT,
        vision=ResNetConfig(image_size=64, layers=(1, 1, 1, 1), width=8, head_width=16),
        preprocess=replace(VIT.preprocess, size=(64, 64)),
    ),
    "options": replace(
        VIT,
        custom_text=True,
        vision=replace(VIT.vision, no_ln_pre=True, pool_type="avg", final_ln_after_pool=True, ls_init_value=0.1),
        text=replace(TEXT, no_causal_mask=True, pool_type="last", proj_bias=True, norm_eps=1e-6, gelu_tanh=True),
    ),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_openclip_loads_our_folder(spec, tmp_path):
    torch.manual_seed(0)
    model = build_model(spec).eval()
    save_open_clip(tmp_path, model)
    reference, val = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path}")
    height, width = spec.preprocess.size
    image, text = torch.randn(2, 3, height, width), torch.randint(1, 49000, (2, 8))
    with torch.no_grad():
        mine, theirs = model(image, text), reference.eval()(image, text)
        again = load_pretrained(describe_source(tmp_path), tmp_path).eval()(image, text)
    assert len(mine) == len(theirs)
    for a, b, c in zip(mine, theirs, again, strict=True):
        torch.testing.assert_close(a, b.reshape(a.shape), atol=1e-5, rtol=1e-5)
        assert torch.equal(a, c)
    config = open_clip.get_model_preprocess_cfg(reference)
    assert (config["mean"], config["std"]) == (list(spec.preprocess.mean), list(spec.preprocess.std))
    assert (config["interpolation"], config["resize_mode"]) == ("bilinear", "squash")
    assert describe_source(tmp_path).preprocess == spec.preprocess
    assert val is not None


def test_openclip_loads_our_coca_folder(tmp_path):
    spec = replace(
        VIT,
        vision=replace(
            VIT.vision, attentional_pool=True, attn_pooler_queries=4, attn_pooler_heads=2, output_tokens=True
        ),
        text=replace(TEXT, embed_cls=True, output_tokens=True),
        decoder=DecoderConfig(context_length=8, width=16, heads=2, layers=1),
    )
    model = build_model(spec)
    save_open_clip(tmp_path, model)
    reference = open_clip.create_model(f"local-dir:{tmp_path}")
    state = reference.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name].reshape(tensor.shape), tensor), name


def test_a_checkpoint_of_openclips_training_with_siglip_loads_into_the_plain_model(tmp_path):
    """There it is an AttributeError."""
    settings = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
        "text_cfg": {"context_length": 8, "width": 16, "heads": 2, "layers": 1},
    }
    trained = open_clip.CLIP(**settings, init_logit_bias=-10).eval()
    state = {f"module.{name}": tensor for name, tensor in trained.state_dict().items()}
    torch.save({"epoch": 1, "name": "run", "state_dict": state, "optimizer": {}}, tmp_path / "epoch_1.pt")
    model = load_pretrained(VIT, tmp_path / "epoch_1.pt").eval()
    assert model.spec.init_logit_bias == -10
    image, text = torch.randn(2, 3, 32, 32), torch.randint(1, 49000, (2, 8))
    with torch.no_grad():
        for mine, theirs in zip(model(image, text), trained(image, text), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_1068_openclips_folder_of_siglip_2(tmp_path):
    """#1068 as it was: the folder of a SigLIP 2 model, whose weights file alone is named."""
    pytest.importorskip("timm")
    kwargs = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8}
    from clip_models import TimmConfig

    spec = replace(
        VIT,
        custom_text=True,
        init_logit_bias=-10.0,
        vision=TimmConfig(
            model_name="vit_base_patch16_siglip_224", image_size=32, pool="map", proj="none", model_kwargs=kwargs
        ),
        text=replace(TEXT, pool_type="last", no_causal_mask=True, proj_bias=True, norm_eps=1e-6, gelu_tanh=True),
        preprocess=PreprocessConfig(size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, resize_mode="squash"),
        tokenizer=TokenizerConfig(kind="hf", name="timm/ViT-B-16-SigLIP2", clean="canonicalize"),
    )
    model = build_model(spec)
    torch.save(model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    from clip_models.specs.openclip import to_open_clip_config

    (tmp_path / "open_clip_config.json").write_text(json.dumps(to_open_clip_config(spec)))
    asked = replace(spec, preprocess=PreprocessConfig(size=(32, 32)), tokenizer=TokenizerConfig())
    loaded = load_pretrained(asked, tmp_path / "open_clip_pytorch_model.bin")
    assert (loaded.spec.preprocess, loaded.spec.tokenizer) == (spec.preprocess, spec.tokenizer)
