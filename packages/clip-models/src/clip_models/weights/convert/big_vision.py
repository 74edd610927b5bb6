"""The .npz checkpoints of big_vision, in which SigLIP and SigLIP 2 were published: a ViT with attention pooling, and a
bidirectional text transformer.

Flax keeps kernels as [inputs, heads, channels of a head] (query, key, value), [heads, channels of a head, outputs]
(out), [inputs, outputs] (dense) and [rows, columns, inputs, outputs] (convolution). The blocks of a tower are one by
one, `encoderblock_3`, or stacked along a first axis, `encoderblock`.
"""

from collections.abc import Mapping

from torch import Tensor

from clip_models.weights.convert.steps import Step, convert_to_ours, count_blocks, move, to_scalar, transpose

_STACKED = "/encoderblock/"
_ATTENTION = "MultiHeadDotProductAttention_0"
_QKV = ("query", "key", "value")


def convert_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Converts big_vision's names to OpenCLIP's: timm's trunk under `visual.trunk.`, the text tower under `text.`."""
    named = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("params/")
        stacked = tensor if _STACKED in name and tensor.ndim else [tensor]
        for number, part in enumerate(stacked):
            named[name.replace(_STACKED, f"/encoderblock_{number}/") if stacked is tensor else name] = part
    layers = [count_blocks(rf"{tower}/encoderblock_(\d+)/", named) for tower in ("img/Transformer", "txt/Encoder_0")]
    return convert_to_ours(_steps(*layers), named)


def _steps(image_layers: int, text_layers: int) -> list[Step]:
    trunk = "visual.trunk"
    steps = [
        move(
            "img/embedding/kernel",
            f"{trunk}.patch_embed.proj.weight",
            lambda kernel_RCIO: kernel_RCIO.permute(3, 2, 0, 1),
        ),
        move("img/embedding/bias", f"{trunk}.patch_embed.proj.bias"),
        move("img/pos_embedding", f"{trunk}.pos_embed"),
        move("img/cls", f"{trunk}.cls_token"),
        *_norm("img/Transformer/encoder_norm", f"{trunk}.norm"),
        move("img/MAPHead_0/probe", f"{trunk}.attn_pool.latent"),
        *_joined(f"img/MAPHead_0/{_ATTENTION}", _QKV[:1], f"{trunk}.attn_pool.q."),
        *_joined(f"img/MAPHead_0/{_ATTENTION}", _QKV[1:], f"{trunk}.attn_pool.kv."),
        *_out(f"img/MAPHead_0/{_ATTENTION}/out", f"{trunk}.attn_pool.proj"),
        *_norm("img/MAPHead_0/LayerNorm_0", f"{trunk}.attn_pool.norm"),
        *_mlp("img/MAPHead_0/MlpBlock_0", f"{trunk}.attn_pool.mlp.fc1", f"{trunk}.attn_pool.mlp.fc2"),
        *_dense("img/head", "visual.head.proj"),
        move("txt/Embed_0/embedding", "text.token_embedding.weight"),
        move("txt/pos_embedding", "text.positional_embedding", lambda pos_1LD: pos_1LD[0]),
        *_norm("txt/Encoder_0/encoder_norm", "text.ln_final"),
        *_dense("txt/head", "text.text_projection"),
        move("t", "logit_scale", to_scalar),
        move("b", "logit_bias", to_scalar),
    ]
    for i in range(image_layers):
        theirs, ours = f"img/Transformer/encoderblock_{i}", f"{trunk}.blocks.{i}"
        steps += _block(theirs, f"{ours}.norm1", f"{ours}.norm2", f"{ours}.attn.qkv.", f"{ours}.attn.proj")
        steps += _mlp(f"{theirs}/MlpBlock_0", f"{ours}.mlp.fc1", f"{ours}.mlp.fc2")
    for i in range(text_layers):
        theirs, ours = f"txt/Encoder_0/encoderblock_{i}", f"text.transformer.resblocks.{i}"
        steps += _block(theirs, f"{ours}.ln_1", f"{ours}.ln_2", f"{ours}.attn.in_proj_", f"{ours}.attn.out_proj")
        steps += _mlp(f"{theirs}/MlpBlock_0", f"{ours}.mlp.c_fc", f"{ours}.mlp.c_proj")
    return steps


def _block(theirs: str, norm_1: str, norm_2: str, qkv: str, out: str) -> list[Step]:
    return [
        *_norm(f"{theirs}/LayerNorm_0", norm_1),
        *_joined(f"{theirs}/{_ATTENTION}", _QKV, qkv),
        *_out(f"{theirs}/{_ATTENTION}/out", out),
        *_norm(f"{theirs}/LayerNorm_1", norm_2),
    ]


def _norm(theirs: str, ours: str) -> list[Step]:
    return [move(f"{theirs}/scale", f"{ours}.weight"), move(f"{theirs}/bias", f"{ours}.bias")]


def _dense(theirs: str, ours: str) -> list[Step]:
    return [move(f"{theirs}/kernel", f"{ours}.weight", transpose), move(f"{theirs}/bias", f"{ours}.bias")]


def _mlp(theirs: str, first: str, second: str) -> list[Step]:
    return [*_dense(f"{theirs}/Dense_0", first), *_dense(f"{theirs}/Dense_1", second)]


def _joined(theirs: str, parts: tuple[str, ...], ours: str) -> list[Step]:
    """Projections into heads; `ours` ends where "weight" or "bias" begins."""
    return [
        Step(
            tuple(f"{theirs}/{part}/kernel" for part in parts),
            (f"{ours}weight",),
            lambda kernel_DHC: kernel_DHC.flatten(1).T,
        ),
        Step(tuple(f"{theirs}/{part}/bias" for part in parts), (f"{ours}bias",), lambda bias_HC: bias_HC.reshape(-1)),
    ]


def _out(theirs: str, ours: str) -> list[Step]:
    return [
        move(f"{theirs}/kernel", f"{ours}.weight", lambda kernel_HCD: kernel_HCD.flatten(0, 1).T),
        move(f"{theirs}/bias", f"{ours}.bias"),
    ]
