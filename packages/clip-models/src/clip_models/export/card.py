"""The README of a model on a hub."""

from collections.abc import Mapping

from clip_models.specs import ModelSpec


def model_card(
    spec: ModelSpec,
    repo_id: str,
    *,
    licence: str = "",
    description: str = "",
    training_data: str = "",
    metrics: Mapping[str, float] | None = None,
) -> str:
    """Returns Markdown with the front matter that hubs read. `metrics`: names and values of a table of results."""
    front = ["library_name: open_clip", "pipeline_tag: zero-shot-image-classification", "tags:", "- clip"]
    if licence:
        front.insert(0, f"license: {licence}")
    kinds = (spec.vision.kind, spec.text.kind)
    needs = ",".join(extra for extra in ("timm", "hf") if extra in kinds)
    preprocess, tokenizer = spec.preprocess, spec.tokenizer
    text = f"""\
| | |
|---|---|
| architecture | {spec.name}{" with QuickGELU" if spec.quick_gelu else ""} |
| images | {preprocess.size[0]} × {preprocess.size[1]}, {preprocess.interpolation}, {preprocess.resize_mode}; \
mean {_numbers(preprocess.mean)}, std {_numbers(preprocess.std)} |
| captions | {spec.text.context_length} tokens, {tokenizer.name or tokenizer.kind} |
| embedding | {spec.embed_dim} numbers |
{f"| trained on | {training_data} |" if training_data else ""}
## Use

```python
# pip install 'clip-models{f"[{needs}]" if needs else ""}'
import clip_models

model, preprocess = clip_models.create_model_from_pretrained("hf-hub:{repo_id}")
tokenizer = clip_models.get_tokenizer("hf-hub:{repo_id}")
```

OpenCLIP reads the same files under the same name."""
    parts = ["---", *front, "---", f"# {repo_id.split('/')[-1]}", "", *([description, ""] if description else []), text]
    if metrics:
        parts += ["", "## Results", "", "| measure | value |", "|---|---|"]
        parts += [f"| {name} | {value:g} |" for name, value in metrics.items()]
    return "\n".join(parts) + "\n"


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
