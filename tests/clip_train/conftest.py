import random
from pathlib import Path

import pytest
from PIL import Image

from clip_data.dataset import Dataset
from tests.support.datasets import make_dataset

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (240, 240, 240)}


def boxes(count: int, seed: int) -> list[dict]:
    """Images of a box on a ground with their captions; those of another seed are other samples."""
    draw = random.Random(seed)
    samples = []
    for number in range(count):
        ground, box = draw.choice(list(COLOURS)), draw.choice(list(COLOURS))
        image = Image.new("RGB", (64, 64), COLOURS[ground])
        image.paste(COLOURS[box], (draw.randrange(40), draw.randrange(40), 60, 60))
        samples.append({"image": image, "caption": f"a {box} box on {ground} ground, number {seed}-{number}"})
    return samples


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the datasets `train` (40 samples) and `val` (20)."""
    root = tmp_path_factory.mktemp("datasets")
    trained: Dataset = make_dataset(root / "train", boxes(40, 0))
    make_dataset(root / "val", boxes(20, 1))
    assert len(trained.units) == 5
    return root
