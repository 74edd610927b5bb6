"""OpenCLIP's own layouts: the text tower at the root or under `text.`, OpenAI's extra entries, training prefixes."""

from collections.abc import Mapping

from torch import Tensor

from clip_models.specs import ModelSpec

_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What DistributedDataParallel, torch.compile, FSDP and activation checkpointing put into the names."""

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

_STALE = (*OPENAI_SIZES, "embeddings.position_ids", "embeddings.token_type_ids")


def strip_wrappers(name: str) -> str:
    """`name` without the marks that training leaves, at its start in any order and, but for `module.`, inside."""
    while name.startswith(_WRAPPERS):
        name = name.split(".", 1)[1]
    for wrapper in _WRAPPERS[1:]:
        name = name.replace(f".{wrapper}", ".")
    return name


def to_layout_of(spec: ModelSpec, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the text tower where the model of `spec` has it."""
    at_root = "positional_embedding" in tensors or "token_embedding.weight" in tensors
    if at_root and not spec.text_at_root:
        return {f"text.{name}" if _is_text_at_root(name) else name: t for name, t in tensors.items()}
    if not at_root and spec.text_at_root:
        return {name.removeprefix("text."): tensor for name, tensor in tensors.items()}
    return dict(tensors)


def drop_stale_entries(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what carries no weights: OpenAI's three sizes, and the ids that transformers used to store."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(_STALE)}


def _is_text_at_root(name: str) -> bool:
    return any(name.startswith(head) if head.endswith(".") else name == head for head in _TEXT_AT_ROOT)
