"""The number format of every tensor against OpenCLIP's, and features in low precision against those in float32."""

import pytest

from clip_models import get_model_spec
from clip_models.model import build_model
from clip_models.model.precision import PRECISIONS, apply_precision, get_cast_dtype, get_input_dtype
from tests.support.meta import meta_device

open_clip = pytest.importorskip("open_clip")
pytest.importorskip("timm")
from open_clip.factory import _set_model_device_and_precision  # noqa: E402

pytestmark = pytest.mark.parity

ARCHITECTURES = ["ViT-B-32", "ViT-bigG-14-CLIPA", "RN50", "coca_ViT-B-32", "ViT-B-16-SigLIP", "convnext_base"]


def reference_dtypes(name, precision):
    config = open_clip.get_model_config(name)
    if "multimodal_cfg" in config:
        model_class = open_clip.CoCa
    else:
        custom = "timm_model_name" in config["vision_cfg"] or config.get("custom_text", False)
        model_class = open_clip.CustomTextCLIP if custom and config.get("custom_text") else open_clip.CLIP
    config.pop("custom_text", None)
    with meta_device():
        model = model_class(**config, cast_dtype=open_clip.get_cast_dtype(precision))
    _set_model_device_and_precision(model, "meta", precision, "timm_model_name" in config["vision_cfg"])
    return dtypes_of(model)


def dtypes_of(model):
    return {name: tensor.dtype for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "pure_bf16", "amp_bf16"])
def test_every_tensor_has_openclips_type(name, precision):
    with meta_device():
        ours = build_model(get_model_spec(name))
    parameters = list(ours.parameters())
    assert dtypes_of(apply_precision(ours, precision)) == reference_dtypes(name, precision)
    assert all(before is after for before, after in zip(parameters, ours.parameters(), strict=True))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_types_of_inputs_are_openclips(precision):
    assert get_cast_dtype(precision) == open_clip.get_cast_dtype(precision)
    assert get_input_dtype(precision) == open_clip.get_input_dtype(precision)
