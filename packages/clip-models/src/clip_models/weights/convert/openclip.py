"""OpenCLIP's own layouts: the text tower at the root or under `text.`, and OpenAI's extra entries."""

from collections.abc import Mapping

from torch import Tensor

from clip_models.specs import ModelSpec

_TEXT_AT_ROOT = (
    "positional_embedding",
    "text_projection",
    "text_projection.weight",
    "text_projection.bias",
    "cls_emb",
    "token_embedding.",
    "transformer.",
    "ln_final.",
)

OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")
"""Integers that OpenAI's archives hold beside the weights; nobody else stores them."""


def to_layout_of(spec: ModelSpec, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the text tower where the model of `spec` has it."""
    at_root = "positional_embedding" in tensors or "token_embedding.weight" in tensors
    if at_root and not spec.text_at_root:
        return {f"text.{name}" if _is_text_at_root(name) else name: t for name, t in tensors.items()}
    if not at_root and spec.text_at_root:
        return {name.removeprefix("text."): tensor for name, tensor in tensors.items()}
    return dict(tensors)


def drop_sizes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without OpenAI's three sizes, which the shapes of the weights tell too."""
    return {name: tensor for name, tensor in tensors.items() if name not in OPENAI_SIZES}


def _is_text_at_root(name: str) -> bool:
    return any(name.startswith(head) if head.endswith(".") else name == head for head in _TEXT_AT_ROOT)
