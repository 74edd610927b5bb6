"""Recipes of LoRA and LiT, and fine-tuning from every kind of source, at other sizes than those of the weights."""

import shutil
from pathlib import Path

import pytest
import torch

from clip_models import create_model, save_model, save_open_clip
from clip_train import cli
from tests.support.hub import Hub

NAME = "ViT-Ti-4-24"
RECIPES = Path(__file__).parents[2] / "pipelines/recipes"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model: base.safetensors, and open_clip/ in OpenCLIP's layout."""
    root = tmp_path_factory.mktemp("base")
    model = create_model(NAME, seed=5)
    save_model(root / "base.safetensors", model, model.spec)
    save_open_clip(root / "open_clip", model)
    return root


def fit(recipe: Path, *words: object) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["fit", str(recipe), *map(str, words)])
    assert not stopped.value.code


def short(datasets: Path, run: Path) -> tuple[object, ...]:
    data = ("--data.sources.0.dataset", datasets / "train", "--data.workers", 0, "--data.long_captions", "truncate")
    train = ("--train.steps", 2, "--train.batch_size", 8, "--train.precision", "fp32", "--train.threads", 1)
    return (*data, *train, "--run", run)


def moved(run: Path, base: Path) -> set[str]:
    before = create_model(NAME, str(base / "base.safetensors")).state_dict()
    after = create_model(NAME, str(run / "model.safetensors")).state_dict()
    return {name for name, value in before.items() if not torch.equal(after[name], value)}


@pytest.mark.slow
def test_the_recipe_of_lora_moves_the_adapted_weights_alone(datasets, base, tmp_path):
    pytest.importorskip("peft")
    model = ("--model.name", NAME, "--model.pretrained", base / "base.safetensors", "--model.quick_gelu", "false")
    run = tmp_path / "lora"
    fit(RECIPES / "finetune_lora.toml", *model, *short(datasets, run), "--train.epochs", 0, "--optim.warmup", 0)
    names = create_model(NAME).state_dict()
    assert moved(run, base) == {name for name in names if name.endswith("attn.in_proj_weight")}


@pytest.mark.slow
def test_the_recipe_of_lit_moves_the_text_tower_alone(datasets, base, tmp_path):
    model = ("--model.name", NAME, "--model.pretrained_image", base / "base.safetensors")
    fit(RECIPES / "finetune_lit.toml", *model, *short(datasets, tmp_path / "lit"), "--optim.warmup", 0)
    names = create_model(NAME).state_dict()
    assert moved(tmp_path / "lit", base) == {name for name in names if not name.startswith("visual.")}


@pytest.mark.slow
def test_a_run_starts_from_a_file_a_folder_or_the_hub_and_resizes_positions(datasets, base, tmp_path, monkeypatch):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        "[[data.sources]]\ndataset = 'data'\n[optim]\nlr = 1e-9\n[model]\nname = 'x'\n[checkpoint]\nkeep = 1"
    )
    sizes = ("--model.image_size", 32, "--model.context_length", 20)
    with Hub().running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
        # Not the variable, which is read when the library is imported.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        hub.add("org/model", {path.name: path.read_bytes() for path in (base / "open_clip").iterdir()})
        for number, source in enumerate(
            [base / "base.safetensors", f"local-dir:{base / 'open_clip'}", "hf-hub:org/model"]
        ):
            run = tmp_path / str(number)
            fit(recipe, "--model.name", source, *sizes, *short(datasets, run))
            fit(recipe, "--model.name", NAME, "--model.pretrained", source, *sizes, *short(datasets, tmp_path / "arch"))
            models = [create_model(str(path / "model.safetensors")) for path in (run, tmp_path / "arch")]
            shutil.rmtree(tmp_path / "arch")
            wanted = create_model(NAME, str(base / "base.safetensors"), force_image_size=32, force_context_length=20)
            for model in models:
                assert (model.spec.vision.image_size, model.spec.text.context_length) == (32, 20)
                for name, value in wanted.state_dict().items():
                    torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=1e-6)
