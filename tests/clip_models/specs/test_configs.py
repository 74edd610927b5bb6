from dataclasses import replace

import pytest

import clip_models
from clip_models import ClipModelsError, CLIPTextConfig, ModelSpec, PreprocessConfig, TokenizerConfig, ViTConfig
from clip_models.specs import DecoderConfig, HFTextConfig, ModernTextConfig, ResNetConfig, TimmConfig

ROBERTA = {"model_type": "roberta", "vocab_size": 50265, "hidden_size": 768, "pad_token_id": 1}


def spec(**parts) -> ModelSpec:
    return ModelSpec(**{"name": "x", "embed_dim": 512, **parts})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ViTConfig(image_size=14, patch_size=16), "image_size 14 is less than one patch of 16 pixels"),
        (lambda: ViTConfig(image_size=(224, 8)), "image_size (224, 8) is less than one patch of 16 pixels"),
        (lambda: ViTConfig(pos_embed_type="sin_cos_2d", width=90, head_width=30), "needs vision.width 90 to divide"),
        (lambda: ViTConfig(patch_dropout=1.0), "vision.patch_dropout 1.0 must be a share"),
        (lambda: ResNetConfig(image_size=16), "less than a ResNet's stride of 32"),
        (lambda: ResNetConfig(layers=(3, 0, 6, 3)), "vision.layers (3, 0, 6, 3) must be positive"),
        (lambda: TimmConfig(model_name=""), "vision.model_name is empty"),
        (lambda: TimmConfig(model_name="m", proj="both"), "vision.proj 'both' is unknown; choose from linear, mlp"),
        (lambda: TimmConfig(model_name="m", proj="none", proj_bias=True), "vision.proj_bias has no effect"),
        (lambda: CLIPTextConfig(pool_type="eos"), "text.pool_type eos needs text.eos_id"),
        (lambda: CLIPTextConfig(eos_id=49408), "text.eos_id 49408 is outside the vocabulary of 49408"),
        (lambda: CLIPTextConfig(proj_type="none", proj_bias=True), "text.proj_bias has no effect"),
        (lambda: HFTextConfig(model_name="m", config={}), "text.config of 'm' lacks the key 'model_type'"),
        (lambda: HFTextConfig(model_name="m", config={"model_type": "bert"}), "lacks the key 'vocab_size'"),
        (lambda: TokenizerConfig(kind="hf"), "tokenizer.name '' does not go with tokenizer.kind 'hf'"),
        (lambda: TokenizerConfig(strip_sep_token=True), "tokenizer.strip_sep_token is for the kind hf"),
        (lambda: ViTConfig(width=100, head_width=64), "vision.width 100 is not a multiple of vision.head_width 64"),
        (lambda: ViTConfig(layers=0), "vision.layers 0 must be positive"),
        (lambda: ViTConfig(mlp_ratio=-1.0), "vision.mlp_ratio -1.0 must be positive"),
        (lambda: CLIPTextConfig(width=100, heads=7), "text.width 100 is not a multiple of text.heads 7"),
        (lambda: CLIPTextConfig(context_length=2), "text.context_length 2 has no room"),
        (lambda: CLIPTextConfig(vocab_size=-5), "text.vocab_size -5 must be positive"),
        (lambda: PreprocessConfig(size=(0, 224)), "preprocess.size [0, 224] must be positive"),
        (lambda: PreprocessConfig(mode="L"), "preprocess.mode 'L' is unknown; choose from RGB"),
        (lambda: PreprocessConfig(interpolation="nearest"), "choose from bicubic, bilinear"),
        (lambda: PreprocessConfig(resize_mode="crop"), "choose from shortest, longest, squash"),
        (lambda: PreprocessConfig(std=(0.5, 0.0, 0.5)), "preprocess.std [0.5, 0.0, 0.5] must be positive"),
        (lambda: PreprocessConfig(fill_color=256), "preprocess.fill_color 256 is outside 0 to 255"),
        (lambda: TokenizerConfig(kind="bert"), "tokenizer.kind: there is no tokenizer 'bert'; there are clip-bpe"),
        (lambda: TokenizerConfig(clean="upper"), "tokenizer.clean 'upper' is unknown"),
        (lambda: ModelSpec(name="", embed_dim=8), "a model spec needs a name"),
        (lambda: ModelSpec(name="x", embed_dim=0), "embed_dim 0 must be positive"),
        (lambda: ModelSpec(name="x", embed_dim=8, text=CLIPTextConfig(vocab_size=100)), "vocab_size 100 is less than"),
        (lambda: ModelSpec(name="x", embed_dim=8, vision=ViTConfig(image_size=32)), "preprocess.size [224, 224]"),
        (lambda: ModelSpec.from_dict({"name": "x"}), "model spec: missing key embed_dim"),
        (lambda: ModelSpec.from_dict({"name": "x", "embed_dim": "8"}), "embed_dim = '8' must be an integer"),
        (lambda: ModelSpec.from_dict({"name": "x", "embed_dim": True}), "embed_dim = True must be an integer"),
        (
            lambda: ModelSpec.from_dict({"name": "x", "embed_dim": 8, "vison": {}}),
            "unknown key vison; did you mean vision?",
        ),
        (lambda: ModelSpec.from_dict({"name": "x", "embed_dim": 8, "vision": 3}), "vision must be a table, not 3"),
        (
            lambda: ModelSpec.from_dict({"name": "x", "embed_dim": 8, "text": {"widht": 3}}),
            "model spec: unknown key text.widht; did you mean text.width?",
        ),
        (lambda: PreprocessConfig.from_dict({"size": 224}), "size = 224 must be a list of 2 values"),
        (lambda: PreprocessConfig.from_dict({"mean": [0.1, 0.2]}), "mean = [0.1, 0.2] must be a list of 3 values"),
    ],
)
def test_impossible_values_are_named(build, message):
    with pytest.raises(ClipModelsError) as caught:
        build()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: spec(text=CLIPTextConfig(width=256, heads=4, proj_type="none")), "text.width 256 to be embed_dim 512"),
        (lambda: spec(text=hf(proj_type="none")), "text.width 768 to be embed_dim 512"),
        (
            lambda: spec(embed_dim=500, vision=ViTConfig(attentional_pool=True)),
            "embed_dim 500 is not a multiple of vision.attn_pooler_heads 8",
        ),
        (
            lambda: spec(quick_gelu=True, vision=TimmConfig(model_name="m"), text=hf()),
            "quick_gelu has no effect on a timm image tower and a hf text tower",
        ),
        (lambda: spec(quick_gelu=True, vision=ViTConfig(gelu_tanh=True)), "quick_gelu and gelu_tanh are different"),
        (
            lambda: spec(text=CLIPTextConfig(vocab_size=32000), tokenizer=sentencepiece("gemma")),
            "text.vocab_size 32000 is less than the tokenizer's 256000 ids",
        ),
        (lambda: spec(tokenizer=sentencepiece("c4-en")), "text.pool_type argmax takes the token of the highest id"),
        (lambda: spec(text=CLIPTextConfig(pool_type="eos", eos_id=2)), "text.eos_id 2 is not the end of the clip-bpe"),
        (lambda: spec(tokenizer=tiktoken(), text=CLIPTextConfig(vocab_size=50260)), "from a modern text tower"),
        (lambda: spec(tokenizer=tiktoken(), text=modern(pad_id=7)), "must differ and be above the ids of 'r50k"),
        (lambda: spec(tokenizer=tiktoken(), text=modern(pad_id=50257)), "must differ and be above"),
        (lambda: coca(vision=ResNetConfig()), "needs the tokens of a vit image tower, not of a resnet one"),
        (lambda: coca(vision=ViTConfig(attentional_pool=True)), "a decoder needs vision.output_tokens = true"),
        (lambda: coca(text=CLIPTextConfig()), "a decoder needs text.output_tokens = true"),
        (lambda: coca(vision=ViTConfig(output_tokens=True)), "width of the image tokens, vision.width 768"),
        (lambda: coca(embed_dim=768), "decoder.width 512 is not the width of the image tokens, embed_dim 768"),
        (lambda: coca(text=CLIPTextConfig(width=256, heads=4, output_tokens=True)), "512 is not text.width 256"),
        (lambda: coca(decoder=DecoderConfig(vocab_size=60000)), "vocab_size 60000 is not text.vocab_size 49408"),
    ],
)
def test_parts_that_do_not_go_together_are_named(build, message):
    with pytest.raises(ClipModelsError) as caught:
        build()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def hf(**fields) -> HFTextConfig:
    return HFTextConfig(model_name="roberta-base", config=ROBERTA, **fields)


def modern(**fields) -> ModernTextConfig:
    return ModernTextConfig(**{"eos_id": 50257, "pad_id": 50258, "bos_id": 50259, **fields})


def sentencepiece(name: str) -> TokenizerConfig:
    return TokenizerConfig(kind="sentencepiece", name=name)


def tiktoken() -> TokenizerConfig:
    return TokenizerConfig(kind="tiktoken", name="r50k_base")


def coca(**parts) -> ModelSpec:
    fitting = {
        "vision": ViTConfig(attentional_pool=True, output_tokens=True),
        "text": CLIPTextConfig(embed_cls=True, output_tokens=True),
        "decoder": DecoderConfig(),
    }
    return spec(**{**fitting, **parts})


def test_parts_that_go_together_are_taken():
    coca()
    spec(tokenizer=tiktoken(), text=modern())
    spec(quick_gelu=True, vision=ResNetConfig())
    spec(quick_gelu=True, text=hf())


def test_from_dict_takes_integers_for_floats_and_the_towers_size():
    spec = ModelSpec.from_dict(
        {"name": "x", "embed_dim": 8, "vision": {"image_size": 96, "patch_size": 8, "mlp_ratio": 2}}
    )
    assert spec.preprocess.size == (96, 96)
    assert isinstance(spec.vision.mlp_ratio, float)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"name": "other"}, ""),
        ({"tokenizer": TokenizerConfig(clean="whitespace")}, ""),
        ({"quick_gelu": True}, "quick_gelu False against True"),
        ({"embed_dim": 64}, "embed_dim 128 against 64"),
        ({"text": CLIPTextConfig(context_length=32, width=64, heads=4, layers=2)}, "text.heads 2 against 4"),
    ],
)
def test_difference_of_networks(change, difference):
    spec = clip_models.get_model_spec("ViT-Ti-4-24")
    assert spec.describe_difference(replace(spec, **change)) == difference
