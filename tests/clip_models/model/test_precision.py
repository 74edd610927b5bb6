import pytest
import torch
import torch.nn.functional as F

from clip_models import (
    ClipModelsError,
    CLIPTextConfig,
    DecoderConfig,
    HFTextConfig,
    ModelSpec,
    ModernTextConfig,
    PreprocessConfig,
    ResNetConfig,
    TimmConfig,
    TokenizerConfig,
    ViTConfig,
)
from clip_models.model import build_model
from clip_models.model.precision import apply_precision, convert_weights_to_lp, get_cast_dtype

VIT = ViTConfig(image_size=32, patch_size=8, width=64, layers=2, head_width=32)
TEXT = CLIPTextConfig(context_length=12, vocab_size=99, width=64, heads=2, layers=2)
BERT = {"model_type": "bert", "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "pad_token_id": 0}  # fmt: skip


def spec_of(vision=VIT, text=TEXT, **options) -> ModelSpec:
    size = vision.image_size
    return ModelSpec(
        name="small", embed_dim=64, vision=vision, text=text, preprocess=PreprocessConfig(size=(size, size)),
        tokenizer=TokenizerConfig(kind="hf", name="any"), **options,
    )  # fmt: skip


FAMILIES = {
    "vit": spec_of(),
    "custom text": spec_of(custom_text=True, init_logit_bias=-10.0),
    "resnet": spec_of(ResNetConfig(image_size=64, width=16, layers=(1, 1, 1, 1))),
    "coca": spec_of(
        ViTConfig(image_size=32, patch_size=8, width=64, layers=1, head_width=32, attentional_pool=True,
                  attn_pooler_queries=8, output_tokens=True),
        CLIPTextConfig(context_length=11, vocab_size=99, width=64, heads=2, layers=1, embed_cls=True,
                       output_tokens=True),
        decoder=DecoderConfig(context_length=11, vocab_size=99, width=64, heads=2, layers=1),
    ),
    "modern": spec_of(
        text=ModernTextConfig(context_length=12, vocab_size=99, width=64, heads=2, layers=2, eos_id=98, qk_norm=True,
                              attn_gated=True, reg_tokens=1, value_residual=True)
    ),
    "hf": spec_of(text=HFTextConfig(model_name="any", config=BERT, context_length=12)),
    "timm": spec_of(
        TimmConfig(image_size=64, model_name="test_vit", pool="", proj="linear"),
        CLIPTextConfig(context_length=12, vocab_size=99, width=64, heads=2, layers=2, proj_bias=True),
    ),
}  # fmt: skip


def make_inputs(spec):
    generator = torch.Generator().manual_seed(1)
    size = spec.vision.image_size
    text = torch.randint(1, 90, (3, spec.text.context_length), generator=generator)
    text[:, 8] = 98
    return torch.randn(3, 3, size, size, generator=generator), text


def features_of(model, spec):
    image, text = make_inputs(spec)
    with torch.no_grad():
        return model.encode_image(image), model.encode_text(text)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["bf16", "pure_bf16", "fp16"])
def test_features_in_low_precision_are_near_those_in_float32(family, precision):
    if family == "hf":
        pytest.importorskip("transformers")
    if family == "timm":
        pytest.importorskip("timm")
    spec = FAMILIES[family]
    torch.manual_seed(0)
    model = build_model(spec).eval()
    expected = features_of(model, spec)
    assert apply_precision(model, precision) is model
    for low, full in zip(features_of(model, spec), expected, strict=True):
        assert low.dtype == (torch.float16 if precision == "fp16" else torch.bfloat16)
        assert F.cosine_similarity(low.float(), full, dim=-1).min() > 0.99


@pytest.mark.parametrize("precision", ["fp32", "amp", "amp_bf16", "amp_bfloat16"])
def test_the_others_keep_float32(precision):
    model = apply_precision(build_model(FAMILIES["vit"]), precision)
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    assert get_cast_dtype(precision) is None


def test_norms_embeddings_and_scale_stay_in_float32():
    model = build_model(FAMILIES["vit"])
    convert_weights_to_lp(model, torch.bfloat16)
    kept = {name for name, tensor in model.named_parameters() if tensor.dtype == torch.float32}
    assert {"logit_scale", "token_embedding.weight", "visual.ln_pre.weight", "visual.class_embedding"} <= kept
    assert not any("proj" in name or "c_fc" in name or "conv1" in name for name in kept)


def test_an_unknown_precision_is_refused():
    with pytest.raises(ClipModelsError, match=r"precision 'fp61' is unknown; choose from fp32, fp16, bf16, pure_fp16"):
        apply_precision(build_model(FAMILIES["vit"]), "fp61")
