"""The recipes of pipelines/: each resolves and can be estimated; architectures have their published sizes."""

from pathlib import Path

import pytest

from clip_core.config import from_dict, load_file
from clip_train.config import FitConfig, resolve
from clip_train.estimate.config import Machines
from clip_train.estimate.run import estimate

RECIPES = Path(__file__).parents[2] / "pipelines" / "recipes"
# Millions of parameters as OpenCLIP's docs/model_profile.csv and openclip_results.csv give them, and (batch, samples).
EXPECTED = {
    "datacomp_medium_vit_b32": (151.28, 4096, 128e6),
    "datacomp_medium_vit_b16": (149.62, 4096, 128e6),
    "datacomp_large_vit_b32": (151.28, 8192, 1.28e9),
    "datacomp_large_vit_b16": (149.62, 8192, 1.28e9),
    "datacomp_xlarge_vit_l14": (427.62, 90_112, 12.8e9),
    "siglip_so400m": (877.36, 32_768, 45e9),
    "coca_vit_b32": (253.56, 90_112, 13e9),
    "lit_vit_b16": (149.62, 16_384, 55_000 * 16_384),
    "distillation_vit_b16": (149.62, 8192, 1.28e9),
    "metaclip_vit_b32": (151.28, 32_768, 12.8e9),
}


def load(name: str) -> FitConfig:
    file = RECIPES / f"{name}.toml"
    return resolve(from_dict(FitConfig, load_file(file), str(file)))


def test_every_training_recipe_is_tested():
    others = {"captioned_folder", "quickstart", "datacomp"}
    found = {path.stem for path in RECIPES.glob("*.toml") if not path.stem.startswith("finetune")}
    assert found == EXPECTED.keys() | others


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_a_recipe_dry_runs(name):
    millions, batch, samples = EXPECTED[name]
    config = load(name)
    devices = 512 if name.startswith("coca") else 64  # as its source has them: with 64 a share does not fit into 80 GB
    found = estimate(config, Machines(devices=devices, price=2.0))
    assert found.parameters["total"] / 1e6 == pytest.approx(millions, abs=0.01)
    assert config.train.batch_size == batch
    assert found.seen == pytest.approx(samples, rel=1e-4)
    assert found.samples is None
    assert "no dataset" in found.data
    assert found.cost > 0
    assert 0 < found.memory["total"] < found.memory["device"]
    locked = found.parameters["total"] - found.parameters["trained"]
    assert locked == (found.parameters["image"] if name.startswith("lit") else 0)
