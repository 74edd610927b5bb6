"""`clip-models list`: architectures and their pretrained tags."""

import json
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Config:
    """The names are values of --model, the tags in the same line of --pretrained."""

    pattern: str = field(default="", metadata={"positional": True})
    """part of a name, in any case, or a pattern: siglip, "ViT-?-16*" """
    pretrained: bool = False
    """only architectures with tags"""
    format: Literal["table", "json"] = "table"
    """output format"""


def run(config: Config) -> int:
    from clip_models.errors import ClipModelsError
    from clip_models.specs import get_model_spec, list_models
    from clip_models.weights.registry import list_pretrained_tags_by_model

    rows: list[dict[str, Any]] = []
    for name in list_models():
        tags = list_pretrained_tags_by_model(name)
        if _matches(name, config.pattern) and (tags or not config.pretrained):
            spec = get_model_spec(name)
            size = spec.preprocess.size
            rows.append({
                "model": name,
                "image_size": list(size),
                "context_length": spec.text.context_length,
                "embed_dim": spec.embed_dim,
                "tags": tags,
            })  # fmt: skip
    if not rows:
        hint = "leave out --pretrained" if config.pretrained else "clip-models list names them all"
        raise ClipModelsError(f"no architecture matches {config.pattern!r}; {hint}")
    if config.format == "json":
        print(json.dumps(rows, indent=2))
        return 0
    width = max(len(row["model"]) for row in rows)
    print(f"{'model':<{width}}  {'image':>7}  {'text':>4}  {'dim':>4}  tags")
    for row in rows:
        height, across = row["image_size"]
        side = str(height) if height == across else f"{height}x{across}"
        line = f"{row['model']:<{width}}  {side:>7}  {row['context_length']:>4}  {row['embed_dim']:>4}"
        print(" ".join((line + " ", *row["tags"])).rstrip())
    return 0


def _matches(name: str, pattern: str) -> bool:
    from fnmatch import fnmatchcase

    name, pattern = name.lower(), pattern.lower()
    return fnmatchcase(name, pattern) if any(mark in pattern for mark in "*?[") else pattern in name
