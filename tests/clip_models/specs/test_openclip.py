"""open_clip_config.json to a spec and back; parity with the published files is in tests/parity."""

import json

import pytest

from clip_models import ClipModelsError, get_model_spec, list_models
from clip_models.specs import HFTextConfig, ModelSpec, ModernTextConfig, TokenizerConfig
from clip_models.specs.openclip import from_open_clip_config, to_open_clip_config


def config(vision=None, text=None, **root) -> dict:
    return {"embed_dim": 512, "vision_cfg": vision or {}, "text_cfg": text or {}, **root}


@pytest.mark.parametrize("name", list_models())
def test_export_and_import_are_inverses_for_every_architecture(name):
    spec = get_model_spec(name)
    assert from_open_clip_config(json.loads(json.dumps(to_open_clip_config(spec))), name) == spec


def test_preprocessing_and_options_go_with_the_config():
    spec = ModelSpec.from_dict(
        {
            "name": "odd",
            "embed_dim": 64,
            "quick_gelu": True,
            "custom_text": True,
            "init_logit_scale": 2.3,
            "init_logit_bias": -10.0,
            "vision": {"image_size": [64, 96], "ls_init_value": 0.1, "pos_embed_type": "sin_cos_2d", "norm_eps": 1e-6},
            "text": {"pool_type": "eos", "eos_id": 3, "vocab_size": 60000},
            "preprocess": {"mean": [0.1, 0.2, 0.3], "resize_mode": "longest", "fill_color": 9},
            "tokenizer": {"kind": "hf", "name": "a/b", "mode": "clips", "clean": "lower", "language": "fra_Latn"},
        }
    )
    written = to_open_clip_config(spec)
    assert from_open_clip_config(json.loads(json.dumps(written)), "odd") == spec
    assert written["model_cfg"]["vision_cfg"]["image_size"] == [64, 96]
    assert written["preprocess_cfg"]["fill_color"] == 9
    assert written["model_cfg"]["text_cfg"]["tokenizer_kwargs"] == {"clean": "lower", "language": "fra_Latn"}


def test_a_config_without_preprocessing_takes_that_of_the_architecture_of_its_name():
    siglip = to_open_clip_config(get_model_spec("ViT-B-16-SigLIP"))["model_cfg"]
    assert from_open_clip_config(siglip, "ViT-B-16-SigLIP").preprocess.resize_mode == "squash"
    assert from_open_clip_config({"model_cfg": config()}, "mine").preprocess.resize_mode == "shortest"


def test_the_size_of_the_images_is_the_towers():
    spec = from_open_clip_config({"model_cfg": config({"image_size": 96}), "preprocess_cfg": {"size": 224}}, "x")
    assert spec.preprocess.size == (96, 96)


def test_options_at_their_defaults_say_nothing():
    nothing = {"block_type": None, "qk_norm": False, "scale_fc": False, "timm_pool": "avg", "act_kwargs": None}
    rest = {"hf_model_name": None, "tokenizer_kwargs": {}, "hf_model_pretrained": True, "attention_mode": "causal"}
    assert from_open_clip_config(config(nothing, rest), "x") == ModelSpec(name="x", embed_dim=512)


def test_null_is_a_value_for_the_projection_of_timm():
    spec = from_open_clip_config(config({"timm_model_name": "m", "timm_proj": None}), "x")
    assert spec.vision.proj == ""
    assert to_open_clip_config(spec)["model_cfg"]["vision_cfg"]["timm_proj"] is None
    assert from_open_clip_config(config({"timm_model_name": "m", "timm_proj": "none"}), "x").vision.proj == "none"


def test_a_hugging_face_tower_of_the_table_needs_only_its_name():
    spec = from_open_clip_config(config(text={"hf_model_name": "roberta-base", "hf_pooler_type": None}), "x")
    assert isinstance(spec.text, HFTextConfig)
    assert spec.text.config["vocab_size"] == 50265
    assert spec.text.pooler_type == "mean_pooler"
    assert spec.tokenizer == TokenizerConfig(kind="hf", name="roberta-base")  # never CLIP's, whose ids mean others
    assert "hf_model_config" not in to_open_clip_config(spec)["model_cfg"]["text_cfg"]  # OpenCLIP 3.3 would refuse it


def test_an_unknown_hugging_face_tower_needs_its_configuration():
    text = {"hf_model_name": "me/mine", "hf_proj_type": "linear"}
    with pytest.raises(ClipModelsError, match=r"'me/mine' is not known here; give .* as text_cfg.hf_model_config"):
        from_open_clip_config(config(text=text), "x")
    own = {"model_type": "bert", "vocab_size": 99, "hidden_size": 32, "pad_token_id": 0}
    spec = from_open_clip_config(config(text={**text, "hf_model_config": own}), "x")
    assert spec.text.config == own
    assert from_open_clip_config(to_open_clip_config(spec), "x") == spec


def test_a_change_to_a_known_configuration_is_written_where_openclip_reads_it():
    text = to_open_clip_config(get_model_spec("gte-modernbert-base-ViT-B-32-256"))["model_cfg"]["text_cfg"]
    assert text["hf_model_config"] == {"max_position_embeddings": 256}
    again = from_open_clip_config(config({"image_size": 256, "patch_size": 32}, text), "x")
    assert again.text == get_model_spec("gte-modernbert-base-ViT-B-32-256").text


def test_a_modern_tower_takes_openclips_defaults():
    text = {"text_arch": "modern", "eos_id": 9, "pad_id": 0, "hf_tokenizer_name": "a/b", "vocab_size": 50}
    spec = from_open_clip_config(config(text={**text, "variable_text": True}), "x")
    assert isinstance(spec.text, ModernTextConfig)
    assert (spec.text.context_length, spec.text.norm_eps, spec.text.pool_type) == (77, 1e-6, "eos")
    assert to_open_clip_config(spec)["model_cfg"]["text_cfg"]["text_arch"] == "modern"


def test_a_decoder_has_the_classes_of_the_text_config():
    data = config(
        {"output_tokens": True, "attentional_pool": True},
        {"output_tokens": True, "embed_cls": True, "vocab_size": 50000},
        multimodal_cfg={"n_queries": 256, "dim_head": 64, "attn_pooler_heads": 8, "mlp_ratio": 4},
    )
    spec = from_open_clip_config(data, "x")
    assert spec.decoder.vocab_size == 50000
    assert spec.decoder.context_length == 77


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "open_clip_config.json must be a table, not []"),
        ({"model_cfg": {"embed_dim": 8}}, "model_cfg of 'x' lacks the key 'vision_cfg'"),
        ({**config(), "embed_dim": None}, "model spec: missing key embed_dim"),
        (config(audio_cfg={}), "model_cfg.audio_cfg is not an image-text dual encoder"),
        (config(nonscalar_logit_scale=True), "nonscalar_logit_scale is not supported"),
        (config(quickgelu=True), "unknown key 'quickgelu' in model_cfg; did you mean quick_gelu?"),
        (config({"widht": 8}), "unknown key 'widht' in vision_cfg; did you mean width?"),
        (config({"width": "8"}), "vision.width = '8' must be an integer"),
        (config({"qk_norm": True}), "vision_cfg.qk_norm True is not supported"),
        (config({"block_type": "custom"}), "vision_cfg.block_type 'custom' is not supported"),
        (config({"attentional_pool": "parallel"}), "vision_cfg.attentional_pool 'parallel' must be true or false"),
        (config({"norm_kwargs": {"bias": False}}), "vision_cfg.norm_kwargs {'bias': False} is not supported"),
        (config({"act_kwargs": {"inplace": True}}), "vision_cfg.act_kwargs {'inplace': True} is not supported"),
        (config({"timm_model_name": "m", "width": 3}), "vision_cfg.width 3 is not supported with timm_model_name"),
        (config({"timm_model_name": "naflexvit_base_patch16_map"}), "variable resolution is not supported"),
        (config({"layers": [3, 4, 6, 3], "pool_type": "avg"}), "pool_type 'avg' is not supported with a ResNet"),
        (config(text={"text_arch": "old"}), "text_cfg.text_arch 'old' is unknown; choose from clip, modern"),
        (config(text={"scale_heads": True}), "text_cfg.scale_heads True is not supported"),
        (config(text={"variable_text": True}), "text_cfg.variable_text True is not supported"),
        (config(text={"text_arch": "modern", "embed_cls": True}), "embed_cls True is not supported with text_arch"),
        (config(text={"hf_model_name": "roberta-base", "layers": 3}), "layers 3 is not supported with hf_model_name"),
        (config(text={"hf_model_name": "roberta-base", "pad_id": 5}), "pad_id 5 is not the pad_token_id 1 of"),
        (config(text={"tokenizer_type": "bpe"}), "tokenizer_type 'bpe' is not supported; it may be tiktoken"),
        (config(text={"tokenizer_kwargs": {"strip_sep_token": True}}), "not supported with a tokenizer of the kind"),
        (config(text={"tokenizer_kwargs": {"lower": True}}), "unknown key 'lower' in text_cfg.tokenizer_kwargs"),
        (config(multimodal_cfg={"mlp_ratio": 2}), "multimodal_cfg.mlp_ratio 2 is not supported: OpenCLIP builds 4.0"),
        (config(multimodal_cfg={"ls_init_value": 0.1}), "unknown key 'ls_init_value' in multimodal_cfg"),
        ({"model_cfg": config(), "preprocess_cfg": {"colour": 1}}, "unknown key preprocess.colour"),
        (
            {"model_cfg": config(), "preprocess_cfg": {"interpolation": "random"}},
            "must be one of 'bicubic', 'bilinear'",
        ),
    ],
)
def test_what_has_no_equal_here_is_named(data, message):
    with pytest.raises(ClipModelsError) as caught:
        from_open_clip_config(data, "x")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_openclip_has_no_words_for_is_named():
    spec = from_open_clip_config(config(text={"vocab_size": 32000, "pool_type": "last"}), "my-siglip")
    assert spec.tokenizer == TokenizerConfig(kind="sentencepiece", name="c4-en")
    with pytest.raises(ClipModelsError, match="cannot express the sentencepiece tokenizer 'c4-en'"):
        to_open_clip_config(spec)
