"""big_vision's npz for SigLIP against OpenCLIP's reading of the same file."""

from functools import partial

import numpy as np
import pytest
import torch

from clip_models import ClipModelsError, CLIPTextConfig, ModelSpec, PreprocessConfig, TimmConfig, TokenizerConfig
from clip_models.weights.load import load_pretrained

open_clip = pytest.importorskip("open_clip")
timm = pytest.importorskip("timm")
pytestmark = pytest.mark.parity

KWARGS = {"embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0, "patch_size": 8}
WIDTH, HEADS, HIDDEN, VOCAB, LENGTH = 32, 4, 64, 50, 6
TRUNK = "vit_base_patch16_siglip_224"


def spec_of(**kwargs) -> ModelSpec:
    return ModelSpec(
        name="tiny-siglip",
        embed_dim=WIDTH,
        custom_text=True,
        init_logit_bias=-10.0,
        vision=TimmConfig(
            model_name=TRUNK, image_size=32, pool="map", proj="none", model_kwargs=KWARGS | kwargs
        ),
        text=CLIPTextConfig(
            context_length=LENGTH, vocab_size=VOCAB, width=WIDTH, heads=HEADS, layers=3, mlp_ratio=2.0,
            no_causal_mask=True, pool_type="last", proj_bias=True, norm_eps=1e-6,
        ),
        preprocess=PreprocessConfig(size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resize_mode="squash"),
        tokenizer=TokenizerConfig(kind="hf", name="x"),
    )  # fmt: skip


def block(rng, *lead):
    def array(*shape):
        return rng.standard_normal((*lead, *shape)).astype(np.float32)

    attention = "MultiHeadDotProductAttention_0"
    head = WIDTH // HEADS
    made = {f"{attention}/{part}/kernel": array(WIDTH, HEADS, head) for part in ("query", "key", "value")}
    made |= {f"{attention}/{part}/bias": array(HEADS, head) for part in ("query", "key", "value")}
    made |= {f"{attention}/out/kernel": array(HEADS, head, WIDTH), f"{attention}/out/bias": array(WIDTH)}
    for norm in ("LayerNorm_0", "LayerNorm_1"):
        made |= {f"{norm}/scale": array(WIDTH), f"{norm}/bias": array(WIDTH)}
    made |= {"MlpBlock_0/Dense_0/kernel": array(WIDTH, HIDDEN), "MlpBlock_0/Dense_0/bias": array(HIDDEN)}
    return made | {"MlpBlock_0/Dense_1/kernel": array(HIDDEN, WIDTH), "MlpBlock_0/Dense_1/bias": array(WIDTH)}


def blocks(rng, prefix, depth, stacked):
    if stacked:
        return {f"{prefix}/encoderblock/{name}": array for name, array in block(rng, depth).items()}
    return {f"{prefix}/encoderblock_{i}/{name}": array for i in range(depth) for name, array in block(rng).items()}


def write_npz(path, root="params/", stacked=False, patch=8):
    rng = np.random.default_rng(0)

    def array(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    pool = {name: a for name, a in block(rng).items() if not name.startswith("LayerNorm_1")}
    arrays = {
        "img/embedding/kernel": array(patch, patch, 3, WIDTH),
        "img/embedding/bias": array(WIDTH),
        "img/pos_embedding": array(1, 16, WIDTH),
        **blocks(rng, "img/Transformer", 2, stacked),
        "img/Transformer/encoder_norm/scale": array(WIDTH),
        "img/Transformer/encoder_norm/bias": array(WIDTH),
        "img/MAPHead_0/probe": array(1, 1, WIDTH),
        **{f"img/MAPHead_0/{name}": a for name, a in pool.items()},
        "txt/Embed_0/embedding": array(VOCAB, WIDTH),
        "txt/pos_embedding": array(1, LENGTH, WIDTH),
        **blocks(rng, "txt/Encoder_0", 3, stacked),
        "txt/Encoder_0/encoder_norm/scale": array(WIDTH),
        "txt/Encoder_0/encoder_norm/bias": array(WIDTH),
        "txt/head/kernel": array(WIDTH, WIDTH),
        "txt/head/bias": array(WIDTH),
        "t": array(1),
        "b": array(1),
    }
    np.savez(path, **{root + name: a for name, a in arrays.items()})
    return path


def reference(path, monkeypatch):
    from open_clip.convert import load_big_vision_weights

    with monkeypatch.context() as patch:
        small = partial(timm.create_model, **KWARGS, img_size=32)
        patch.setattr("open_clip.timm_model.timm.create_model", small)
        model = open_clip.CustomTextCLIP(
            embed_dim=WIDTH,
            init_logit_bias=-10,
            vision_cfg={"image_size": 32, "timm_model_name": TRUNK, "timm_pool": "map", "timm_proj": "none"},
            text_cfg={
                "context_length": LENGTH, "vocab_size": VOCAB, "width": WIDTH, "heads": HEADS, "layers": 3,
                "mlp_ratio": 2.0, "no_causal_mask": True, "pool_type": "last", "proj_bias": True,
                "norm_kwargs": {"eps": 1e-6},
            },
        )  # fmt: skip
    load_big_vision_weights(model, str(path))
    return model.eval()


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("root", ["params/", ""])
def test_equal_weights_and_features(tmp_path, monkeypatch, root, stacked):
    path = write_npz(tmp_path / "x.npz", root, stacked)
    expected, model = reference(path, monkeypatch), load_pretrained(spec_of(), path).eval()
    state = expected.state_dict()
    assert model.state_dict().keys() == state.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name].reshape(tensor.shape)), name
    image, text = torch.randn(2, 3, 32, 32), torch.randint(0, VOCAB, (2, LENGTH))
    with torch.no_grad():
        for mine, theirs in zip(model(image, text), expected(image, text), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_patches_of_another_size_are_resampled_on_request(tmp_path, monkeypatch):
    path = write_npz(tmp_path / "x.npz", patch=6)
    expected = reference(path, monkeypatch).state_dict()["visual.trunk.patch_embed.proj.weight"]
    model = load_pretrained(spec_of(), path, sure_of=["image_size"])
    torch.testing.assert_close(model.visual.trunk.patch_embed.proj.weight, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ClipModelsError, match="image patch size 6 against 8"):
        load_pretrained(spec_of(), path)


def test_a_missing_array_is_named(tmp_path):
    arrays = dict(np.load(write_npz(tmp_path / "x.npz")))
    del arrays["params/img/Transformer/encoderblock_1/MultiHeadDotProductAttention_0/key/bias"]
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ClipModelsError) as caught:
        load_pretrained(spec_of(), tmp_path / "x.npz")
    assert "1 missing (visual.trunk.blocks.1.attn.qkv.bias)" in str(caught.value)
    assert "2 extra (img/Transformer/encoderblock_1/MultiHeadDotProductAttention_0/query/bias, " in str(caught.value)
