import pytest

from clip_models import ClipModelsError, get_model_spec
from clip_models.specs.overrides import forced_parts, override_spec

SPEC = get_model_spec("ViT-B-32")


def test_nothing_given_changes_nothing():
    assert override_spec(SPEC) is SPEC


def test_a_forced_size_reaches_the_tower_and_the_images():
    spec = override_spec(SPEC, image_size=320, context_length=32, patch_dropout=0.5, custom_text=True)
    assert (spec.vision.image_size, spec.preprocess.size, spec.vision.patch_dropout) == (320, (320, 320), 0.5)
    assert (spec.text.context_length, spec.text_at_root) == (32, False)
    assert override_spec(SPEC, image_size=[256, 512]).preprocess.size == (256, 512)


def test_keyword_arguments_lie_over_what_is_there():
    spec = override_spec(
        SPEC, image_size=320, preprocess={"mean": [0.5] * 3}, changes={"init_logit_bias": -10, "text": {"layers": 2}}
    )
    assert (spec.init_logit_bias, spec.text.layers, spec.text.width) == (-10.0, 2, 512)
    assert (spec.preprocess.mean, spec.preprocess.std) == ((0.5, 0.5, 0.5), SPEC.preprocess.std)
    other = override_spec(SPEC, changes={"vision": {"kind": "resnet", "width": 32}})
    assert (other.vision.width, type(other.vision).__name__) == (32, "ResNetConfig")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"changes": {"vision_cfg": {"layers": 2}}}, "vision_cfg is called vision here"),
        ({"changes": {"embed_dims": 2}}, "unknown key embed_dims; did you mean embed_dim"),
        ({"changes": {"vision": {"layers": 0}}}, "vision.layers 0 must be positive"),
        ({"preprocess": {"size": [99, 99]}}, r"preprocess.size \[99, 99\] is not the input of the image tower"),
        ({"image_size": 8}, "image_size 8 is less than one patch"),
        ({"patch_dropout": 1.0}, "patch_dropout 1.0 must be a share"),
        ({"patch_dropout": "half"}, "vision.patch_dropout = 'half' must be a finite number"),
        ({"image_size": "320"}, "vision.image_size = '320' must be an integer or a list of 2"),
        ({"image_size": (320,)}, r"vision.image_size = \(320,\) must be an integer or a list of 2"),
        ({"context_length": "32"}, "text.context_length = '32' must be an integer"),
    ],
)
def test_impossible_changes(changes, message):
    with pytest.raises(ClipModelsError, match=message):
        override_spec(SPEC, **changes)


def test_a_resnet_has_no_patches_to_drop():
    resnet = override_spec(SPEC, changes={"vision": {"kind": "resnet"}})
    with pytest.raises(ClipModelsError, match="has no patches to drop; leave force_patch_dropout out"):
        override_spec(resnet, patch_dropout=0.5)


def test_what_the_caller_insists_on():
    forced = {"image_size": 224, "patch_dropout": 0.0, "custom_text": False, "context_length": None}
    changes = {"quick_gelu": False, "text": {"context_length": 5}, "vision": {"layers": 2}}
    assert forced_parts(forced, changes) == {"image_size", "patch_dropout", "quick_gelu", "context_length"}
