from dataclasses import replace

import pytest
import torch

from clip_models import (
    ClipModelsError,
    CLIPTextConfig,
    ModelSpec,
    PreprocessConfig,
    ResNetConfig,
    TimmConfig,
    TokenizerConfig,
    ViTConfig,
)
from clip_models.model import build_model
from clip_models.towers.positions import resize_grid_positions, resize_text_positions
from clip_models.weights.convert.resizing import resample_patches
from clip_models.weights.load import load_model, load_pretrained, model_from_tensors
from clip_models.weights.save import save_model


def spec_of(vision, **changes) -> ModelSpec:
    size = vision.image_size
    return ModelSpec(
        name="tiny",
        embed_dim=16,
        vision=vision,
        text=CLIPTextConfig(context_length=12, vocab_size=60, width=16, heads=2, layers=1),
        preprocess=PreprocessConfig(size=(size, size) if isinstance(size, int) else size),
        tokenizer=TokenizerConfig(kind="hf", name="x"),
        **changes,
    )


def sized(spec, size):
    pair = (size, size) if isinstance(size, int) else size
    return replace(spec, vision=replace(spec.vision, image_size=size), preprocess=replace(spec.preprocess, size=pair))


VIT = spec_of(ViTConfig(image_size=32, patch_size=8, width=16, layers=1, head_width=8))
RESNET = spec_of(ResNetConfig(image_size=64, layers=(1, 1, 1, 1), width=8, head_width=16))
SIGLIP_KWARGS = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8}
SIGLIP = spec_of(
    TimmConfig(
        model_name="vit_base_patch16_siglip_224", image_size=32, pool="map", proj="none", model_kwargs=SIGLIP_KWARGS
    )
)
EVA_KWARGS = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8, "mlp_ratio": 2.0}
EVA = spec_of(
    TimmConfig(model_name="eva02_base_patch16_clip_224", image_size=32, pool="token", proj="", model_kwargs=EVA_KWARGS)
)
CASES = {
    "vit": (VIT, (48, 64), "visual.positional_embedding", 1, (6, 8)),
    "resnet": (RESNET, 96, "visual.attnpool.positional_embedding", 1, (3, 3)),
    "timm without prefix": (SIGLIP, 64, "visual.trunk.pos_embed", 0, (8, 8)),
    "timm with class token": (EVA, 64, "visual.trunk.pos_embed", 1, (8, 8)),
}


@pytest.mark.parametrize(("spec", "size", "name", "prefix", "grid"), CASES.values(), ids=CASES)
def test_image_positions_are_resized_on_request_only(spec, size, name, prefix, grid):
    if isinstance(spec.vision, TimmConfig):
        pytest.importorskip("timm")
    state = build_model(spec).state_dict()
    larger = sized(spec, size)
    model = model_from_tensors(larger, state, "x", sure_of=["image_size"]).eval()
    old, new = state[name], model.state_dict()[name]
    expected = resize_grid_positions(old.reshape(old.shape[-2:]), grid, prefix=prefix)
    assert torch.equal(new.reshape(expected.shape), expected)
    pair = larger.preprocess.size
    with torch.no_grad():
        assert model.encode_image(torch.randn(2, 3, *pair)).isfinite().all()
    with pytest.raises(ClipModelsError) as caught:
        model_from_tensors(larger, state, "x")
    assert (
        f"x has {name} {list(old.shape)}, and 'tiny' with image_size {pair[0]}x{pair[1]} has {list(new.shape)}"
        in str(caught.value)
    )
    assert "force_image_size" in str(caught.value)


def test_text_positions_are_resized_on_request_only():
    state = build_model(VIT).state_dict()
    longer = replace(VIT, text=replace(VIT.text, context_length=20))
    model = model_from_tensors(longer, state, "x", sure_of=["context_length"])
    assert torch.equal(model.positional_embedding, resize_text_positions(state["positional_embedding"], 20))
    with pytest.raises(
        ClipModelsError, match=r"\[12, 16\], and 'tiny' with context_length 20 has \[20, 16\].*force_con"
    ):
        model_from_tensors(longer, state, "x", sure_of=["image_size"])


def test_a_table_of_another_width_is_of_another_shape():
    state = build_model(VIT).state_dict() | {"visual.positional_embedding": torch.zeros(17, 8)}
    with pytest.raises(
        ClipModelsError, match=r"1 of another shape \(visual.positional_embedding \[17, 8\] in place of"
    ):
        model_from_tensors(VIT, state, "x", sure_of=["image_size"])


def test_positions_that_are_no_square_are_an_error():
    state = build_model(VIT).state_dict() | {"visual.positional_embedding": torch.zeros(16, 16)}
    with pytest.raises(ClipModelsError, match="16 image positions are not 1 and a grid of"):
        model_from_tensors(VIT, state, "x", sure_of=["image_size"])


def test_a_file_of_ours_with_another_size(tmp_path):
    save_model(tmp_path / "x.safetensors", build_model(VIT), VIT)
    larger = sized(VIT, 64)
    with pytest.raises(
        ClipModelsError, match=r"image_size \[32, 32\] against \[64, 64\] \(force_image_size=\[32, 32\]\)"
    ):
        load_pretrained(larger, tmp_path / "x.safetensors")
    model = load_pretrained(larger, tmp_path / "x.safetensors", sure_of=["image_size"])
    assert model.spec == larger
    assert model.visual.positional_embedding.shape == (65, 16)
    # a border narrower than a patch is not looked at
    assert load_pretrained(sized(VIT, 39), tmp_path / "x.safetensors").visual.positional_embedding.shape == (17, 16)
    assert load_model(tmp_path / "x.safetensors")[1] == VIT


def test_resampled_patches_give_a_resized_patch_the_same_output():
    """Where information is only added: a patch twice as large."""
    kernel, patch = torch.randn(5, 3, 4, 4), torch.randn(1, 3, 4, 4)
    larger = torch.nn.functional.interpolate(patch, size=(8, 8), mode="bilinear", antialias=False)
    expected, output = (kernel * patch).sum((1, 2, 3)), (resample_patches(kernel, (8, 8)) * larger).sum((1, 2, 3))
    torch.testing.assert_close(output, expected, atol=1e-4, rtol=1e-4)
