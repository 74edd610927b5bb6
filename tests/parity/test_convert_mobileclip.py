"""Apple's MobileCLIP v1 against OpenCLIP's conversion of the same state dict."""

import re
from types import SimpleNamespace

import pytest
import torch

from clip_models import CLIPTextConfig, ModelSpec, PreprocessConfig, TimmConfig
from clip_models.model import build_model
from clip_models.weights.load import load_pretrained

pytest.importorskip("open_clip")
timm = pytest.importorskip("timm")
pytestmark = pytest.mark.parity

FASTVIT = {"layers": (1, 1, 1, 2), "embed_dims": (16, 16, 32, 32)}
HYBRID = {"depth": 2}


def spec_of(name, size, pool, kwargs) -> ModelSpec:
    return ModelSpec(
        name="tiny-mobile",
        embed_dim=24,
        custom_text=True,
        vision=TimmConfig(model_name=name, image_size=size, pool=pool, proj="", model_kwargs=kwargs),
        text=CLIPTextConfig(context_length=10, width=16, heads=2, layers=2, vocab_size=49408),
        preprocess=PreprocessConfig(size=(size, size), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
    )


SPECS = {
    "fastvit": spec_of("fastvit_mci1", 64, "avg", FASTVIT),
    "hybrid": spec_of("vit_base_mci_224", 224, "token", HYBRID),
}
TEXT_NAMES = {
    "text_projection": "projection_layer", "token_embedding.": "embedding_layer.", "ln_final.": "final_layer_norm.",
    "transformer.resblocks.": "transformer.", ".ln_1.": ".pre_norm_mha.0.", ".attn.in_proj_": ".attn.qkv_proj.",
    ".attn.": ".pre_norm_mha.1.", ".ln_2.": ".pre_norm_ffn.0.", ".mlp.c_fc.": ".pre_norm_ffn.1.",
    ".mlp.c_proj.": ".pre_norm_ffn.4.",
}  # fmt: skip
HYBRID_NAMES = {
    "patch_embed.backbone.": "patch_emb.", ".conv.": ".block.conv.", ".bn.": ".block.norm.",
    "blocks.": "transformer.", ".norm1.": ".pre_norm_mha.0.", ".attn.qkv.": ".pre_norm_mha.1.qkv_proj.",
    ".attn.proj.": ".pre_norm_mha.1.out_proj.", ".norm2.": ".pre_norm_ffn.0.", ".mlp.fc1.": ".pre_norm_ffn.1.",
    ".mlp.fc2.": ".pre_norm_ffn.4.",
}  # fmt: skip
FASTVIT_NAMES = {
    "stem.": "patch_embed.", "conv_kxk": "rbr_conv", "conv_scale": "rbr_scale", "identity": "rbr_skip",
    "final_conv": "conv_exp", "large_conv": "lkb_origin", "mlp": "convffn", "se.fc1": "se.reduce",
    "se.fc2": "se.expand", ".gamma": "",
}  # fmt: skip


def replaced(name, table):
    for new, old in table.items():
        name = name.replace(new, old)
    return name


def to_apple(state):
    """The state dict under Apple's names, without the bias of the image projection, which it has not."""
    apple = {"logit_scale": state["logit_scale"]}
    hybrid = "visual.trunk.cls_token" in state
    for name, tensor in state.items():
        if name.startswith("text."):
            old = replaced(name.removeprefix("text."), TEXT_NAMES)
            if old == "positional_embedding":
                old, tensor = "positional_embedding.pos_embed.pos_embed", tensor[None, None]
            apple[f"text_encoder.{old}"] = tensor
        elif name.startswith("visual.trunk."):
            old = name.removeprefix("visual.trunk.")
            if old in ("head.bias", "head.fc.bias"):
                continue
            if old in ("head.weight", "head.fc.weight"):
                old, tensor = ("classifier.proj" if hybrid else "head.proj"), tensor.T
            elif hybrid:
                old = replaced(old, HYBRID_NAMES)
                old = re.sub(r"^norm\.", "post_transformer_norm.", old)
                if old == "pos_embed":
                    old, tensor = "pos_embed.pos_embed.pos_embed", tensor[None]
            else:
                old = re.sub(r"stages\.(\d)\.blocks", lambda m: f"network.{int(m[1]) * 2 + (m[1] == '3')}", old)
                old = re.sub(r"stages\.(\d)\.downsample", lambda m: f"network.{int(m[1]) * 2 - 1}", old)
                old = re.sub(r"stages\.3\.pos_emb\.pos_enc", "network.6.pe", old)
                old = replaced(old, FASTVIT_NAMES)
            apple[f"image_encoder.model.{old}"] = tensor
    return apple


@pytest.mark.parametrize("kind", SPECS)
def test_equal_to_openclips_conversion(kind, tmp_path):
    from open_clip.convert import convert_state_dict

    torch.manual_seed(0)
    original = build_model(SPECS[kind])
    with torch.no_grad():
        for name, tensor in original.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape) if "head" not in name else torch.zeros(tensor.shape))
    state = original.state_dict()
    apple = to_apple(state)
    expected = convert_state_dict(SimpleNamespace(visual=SimpleNamespace(trunk=original.visual.trunk)), dict(apple))
    torch.save(apple, tmp_path / "mobile.pt")
    loaded = load_pretrained(SPECS[kind], tmp_path / "mobile.pt").state_dict()
    assert loaded.keys() == expected.keys() == state.keys()
    for name, tensor in loaded.items():
        assert torch.equal(tensor, expected[name]), name
        assert torch.equal(tensor, state[name]), name
