"""The README of a model on a hub."""

from collections.abc import Mapping

from clip_models.specs import HFTextConfig, ModelSpec, TimmConfig


def model_card(
    spec: ModelSpec,
    repo_id: str,
    *,
    licence: str = "",
    description: str = "",
    training_data: str = "",
    metrics: Mapping[str, float] | None = None,
) -> str:
    """Markdown with the front matter that hubs read. `metrics`: names and values of a table of results."""
    front = ["library_name: open_clip", "pipeline_tag: zero-shot-image-classification", "tags:", "- clip"]
    if licence:
        front.insert(0, f"license: {licence}")
    needs = [name for name, kind in (("timm", TimmConfig), ("hf", HFTextConfig)) if _uses(spec, kind)]
    extras = f"[{','.join(needs)}]" if needs else ""
    preprocess, tokenizer = spec.preprocess, spec.tokenizer
    parts = ["---", *front, "---", f"# {repo_id.split('/')[-1]}", ""]
    if description:
        parts += [description, ""]
    parts += [
        "| | |",
        "|---|---|",
        f"| architecture | {spec.name}{' with QuickGELU' if spec.quick_gelu else ''} |",
        f"| pictures | {preprocess.size[0]} × {preprocess.size[1]}, {preprocess.interpolation},"
        f" {preprocess.resize_mode}; mean {_numbers(preprocess.mean)}, std {_numbers(preprocess.std)} |",
        f"| captions | {spec.text.context_length} tokens, {tokenizer.name or tokenizer.kind} |",
        f"| embedding | {spec.embed_dim} numbers |",
    ]
    if training_data:
        parts.append(f"| trained on | {training_data} |")
    parts += [
        "",
        "## Use",
        "",
        "```python",
        f"# pip install 'clip-models{extras}'",
        "import clip_models",
        "",
        f'model, preprocess = clip_models.create_model_from_pretrained("hf-hub:{repo_id}")',
        f'tokenizer = clip_models.get_tokenizer("hf-hub:{repo_id}")',
        "```",
        "",
        "OpenCLIP reads the same files under the same name.",
    ]
    if metrics:
        parts += ["", "## Results", "", "| measure | value |", "|---|---|"]
        parts += [f"| {name} | {value:g} |" for name, value in metrics.items()]
    return "\n".join(parts) + "\n"


def _uses(spec: ModelSpec, kind: type) -> bool:
    return isinstance(spec.vision, kind) or isinstance(spec.text, kind)


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
