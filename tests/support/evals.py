"""A small labelled dataset and a tiny model to evaluate on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clip_data.dataset import Dataset
from clip_models import ModelSpec, create_model, save_model
from tests.support.datasets import make_dataset

COLORS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "grey": (128, 128, 128)}
SPEC = ModelSpec.from_dict(
    {
        "name": "tiny",
        "embed_dim": 16,
        "vision": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
        "text": {"context_length": 12, "width": 32, "heads": 2, "layers": 1},
    }
)


def make_image(color: str, seed: int) -> Image.Image:
    """24 × 20 pixels of one colour with some noise."""
    noise = np.random.default_rng(seed).integers(-20, 20, (20, 24, 3))
    return Image.fromarray(np.clip(np.array(COLORS[color]) + noise, 0, 255).astype(np.uint8))


def color_samples(count: int = 24) -> list[dict[str, Any]]:
    """Samples with the label column `color`; every sixth has no label, every seventh was rejected."""
    samples = []
    for i in range(count):
        color = list(COLORS)[i % 3]  # grey never occurs
        label = None if i % 6 == 5 else color
        image = None if i % 7 == 6 else make_image(color, i)
        samples.append({"image": image, "caption": f"number {i} is {color}", "color": label})
    return samples


def color_dataset(root: Path, count: int = 24) -> Dataset:
    return make_dataset(root, color_samples(count))


def tiny_model(path: Path, seed: int = 0) -> Path:
    """A random model, saved."""
    save_model(path, create_model(SPEC, seed=seed), SPEC)
    return path
