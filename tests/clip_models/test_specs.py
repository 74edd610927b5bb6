import json
from dataclasses import replace

import pytest

import clip_models
from clip_models import ClipModelsError, ModelSpec, PreprocessConfig, TextConfig, TokenizerConfig, VisionConfig


def test_the_table_lists_the_named_architectures_only():
    assert clip_models.list_models() == [
        "ViT-B-16",
        "ViT-B-16-quickgelu",
        "ViT-B-32",
        "ViT-B-32-quickgelu",
        "ViT-L-14",
        "ViT-L-14-quickgelu",
        "ViT-Ti-4-24",
    ]


def test_inheritance_overrides_key_by_key():
    large = clip_models.get_model_spec("ViT-L-14-quickgelu")
    assert large == replace(
        ModelSpec(name="ViT-L-14-quickgelu", embed_dim=768),
        quick_gelu=True,
        vision=VisionConfig(image_size=224, patch_size=14, width=1024, layers=24),
        text=TextConfig(context_length=77, width=768, heads=12, layers=12),
    )
    assert large.vision.heads == 16


def test_a_slash_is_read_as_openclip_reads_it():
    assert clip_models.get_model_spec("ViT-B/32") == clip_models.get_model_spec("ViT-B-32")


def test_preprocess_dict_is_a_treatment_without_augmentation():
    assert clip_models.get_model_spec("ViT-Ti-4-24").preprocess.to_dict() == {
        "size": [24, 24],
        "mode": "RGB",
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 0,
    }


@pytest.mark.parametrize("name", clip_models.list_models())
def test_specs_survive_json(name):
    spec = clip_models.get_model_spec(name)
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-23", "unknown model 'ViT-B-23'; did you mean ViT-B-32"),
        ("vit_b_16", "did you mean ViT-B-16"),
        ("xyz", "list_models() names them all"),
        ("clip-base", "unknown model 'clip-base'"),
    ],
)
def test_unknown_names_are_answered_with_close_ones(name, message):
    with pytest.raises(ClipModelsError) as caught:
        clip_models.get_model_spec(name)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: VisionConfig(image_size=224, patch_size=15),
            "image_size 224 is not a multiple of vision.patch_size 15",
        ),
        (lambda: VisionConfig(width=100, head_width=64), "vision.width 100 is not a multiple of vision.head_width 64"),
        (lambda: VisionConfig(layers=0), "vision.layers 0 must be positive"),
        (lambda: VisionConfig(mlp_ratio=-1.0), "vision.mlp_ratio -1.0 must be positive"),
        (lambda: TextConfig(width=100, heads=7), "text.width 100 is not a multiple of text.heads 7"),
        (lambda: TextConfig(context_length=2), "text.context_length 2 has no room"),
        (lambda: TextConfig(vocab_size=-5), "text.vocab_size -5 must be positive"),
        (lambda: PreprocessConfig(size=(0, 224)), "preprocess.size [0, 224] must be positive"),
        (lambda: PreprocessConfig(mode="L"), "preprocess.mode 'L' is unknown; choose from RGB"),
        (lambda: PreprocessConfig(interpolation="nearest"), "choose from bicubic, bilinear"),
        (lambda: PreprocessConfig(resize_mode="crop"), "choose from shortest, longest, squash"),
        (lambda: PreprocessConfig(std=(0.5, 0.0, 0.5)), "preprocess.std [0.5, 0.0, 0.5] must be positive"),
        (lambda: PreprocessConfig(fill_color=256), "preprocess.fill_color 256 is outside 0 to 255"),
        (lambda: TokenizerConfig(kind="bert"), "tokenizer.kind 'bert' is unknown; choose from clip-bpe"),
        (lambda: TokenizerConfig(clean="upper"), "tokenizer.clean 'upper' is unknown"),
        (lambda: ModelSpec(name="", embed_dim=8), "a model spec needs a name"),
        (lambda: ModelSpec(name="x", embed_dim=0), "embed_dim 0 must be positive"),
        (lambda: ModelSpec(name="x", embed_dim=8, text=TextConfig(vocab_size=100)), "vocab_size 100 is less than"),
        (lambda: ModelSpec(name="x", embed_dim=8, vision=VisionConfig(image_size=32)), "preprocess.size [224, 224]"),
        (lambda: ModelSpec.from_dict({"name": "x"}), "model spec lacks the key 'embed_dim'"),
        (lambda: ModelSpec.from_dict({"name": "x", "embed_dim": "8"}), "embed_dim must be of type int, not '8'"),
        (lambda: ModelSpec.from_dict({"name": "x", "embed_dim": True}), "embed_dim must be of type int, not True"),
        (lambda: ModelSpec.from_dict({"name": "x", "embed_dim": 8, "vison": {}}), "did you mean vision?"),
        (lambda: ModelSpec.from_dict({"name": "x", "embed_dim": 8, "vision": 3}), "vision must be a table, not 3"),
        (lambda: ModelSpec.from_dict({"name": "x", "embed_dim": 8, "text": {"widht": 3}}), "'widht' in text"),
        (lambda: PreprocessConfig.from_dict({"size": 224}), "size must be a list of 2, not 224"),
        (lambda: PreprocessConfig.from_dict({"mean": [0.1, 0.2]}), "mean must be a list of 3"),
    ],
)
def test_impossible_values_are_named(build, message):
    with pytest.raises(ClipModelsError) as caught:
        build()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


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
        ({"text": TextConfig(context_length=32, width=64, heads=4, layers=2)}, "text.heads 2 against 4"),
    ],
)
def test_difference_of_networks(change, difference):
    spec = clip_models.get_model_spec("ViT-Ti-4-24")
    assert spec.describe_difference(replace(spec, **change)) == difference
