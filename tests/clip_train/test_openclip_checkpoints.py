"""Checkpoints of OpenCLIP's training go on here."""

import json
from pathlib import Path

import pytest
import torch

from clip_models import create_model
from clip_models.specs.openclip import to_open_clip_config
from clip_train import CheckpointConfig, DataConfig, FitConfig, ModelConfig, OptimConfig, Source, TrainConfig, fit
from clip_train.checkpoints.openclip import load_openclip
from clip_train.checkpoints.state import RunState
from clip_train.errors import ClipTrainError
from clip_train.optim.build import make_optimizer

NAME = "ViT-Ti-4-24"


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """(epoch_2.pt, OpenCLIP's model, its AdamW as open_clip_train builds it), after two steps."""
    import open_clip

    folder = tmp_path_factory.mktemp("openclip")
    spec = create_model(NAME, seed=1).spec
    (folder / "open_clip_config.json").write_text(json.dumps(to_open_clip_config(spec)))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)

    def first(name, parameter):
        return parameter.ndim < 2 or "bn" in name or "ln" in name or "bias" in name or "logit_scale" in name

    named = list(model.named_parameters())
    groups = [
        {"params": [p for n, p in named if first(n, p)], "weight_decay": 0.0},
        {"params": [p for n, p in named if not first(n, p)], "weight_decay": 0.2},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), eps=1e-6)
    for _ in range(2):
        _backward(model, spec)
        optimizer.step()
        optimizer.zero_grad()
    path = folder / "epoch_2.pt"
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save(
        {"epoch": 2, "name": "x", "state_dict": state, "optimizer": optimizer.state_dict(), "scaler": {"scale": 2.0}},
        path,
    )
    return path, model, optimizer


def _backward(model, spec) -> None:
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(4, 3, *spec.preprocess.size, generator=generator)
    text = torch.randint(1, 400, (4, spec.text.context_length), generator=generator)
    features = model.encode_image(image, normalize=True) @ model.encode_text(text, normalize=True).T
    (features * model.logit_scale.exp()).square().mean().backward()


@pytest.mark.slow
def test_weights_and_optimizer_take_the_same_next_step(theirs, capsys):
    path, other, optimizer = theirs
    model = create_model(NAME, seed=5)
    config = OptimConfig(lr=1e-3, eps=1e-6, weight_decay=0.2, decay_rule="openclip")
    run = RunState(model=model, optimizer=make_optimizer(model, config))
    assert load_openclip(run, path) == 2
    assert "weights, optimizer and epoch 2 taken; not carried over: scaler, generators" in capsys.readouterr().err
    moments = {name: optimizer.state[parameter] for name, parameter in other.named_parameters()}
    for name, parameter in model.named_parameters():
        for quantity in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(run.optimizer.state[parameter][quantity], moments[name][quantity]), name
    for each in (model, other):
        _backward(each, model.spec)
    run.optimizer.step()
    optimizer.step()
    stepped = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        if not name.endswith("in_proj_bias"):  # the keys' bias has no gradient but rounding, which Adam enlarges
            assert torch.allclose(parameter, stepped[name], atol=2e-6), name


@pytest.mark.slow
def test_a_run_begins_after_its_epochs(theirs, datasets, tmp_path):
    config = FitConfig(
        run=str(tmp_path / "run"),
        model=ModelConfig(name=NAME),
        parent=str(theirs[0]),
        data=DataConfig(sources=(Source(dataset=str(datasets / "train")),), workers=0),
        train=TrainConfig(epochs=2.3, batch_size=8, precision="fp32", threads=1, log_every=1, device="cpu"),
        checkpoint=CheckpointConfig(every=100),
    )
    fit(config)
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "event" not in row] == [11]  # 2 epochs of 40 samples are 10 steps
    assert json.loads((tmp_path / "run" / "fork.json").read_text())["epoch"] == 2


def test_what_is_no_checkpoint_of_training_or_of_another_model_is_one_line(tmp_path):
    model = create_model(NAME, seed=0)
    run = RunState(model=model, optimizer=make_optimizer(model, OptimConfig()))
    weights = dict(model.state_dict())
    for content, message in (
        ({"state_dict": weights}, "has no number of epochs, .* model.pretrained"),
        ({"epoch": 1, "state_dict": {**weights, "visual.proj": torch.zeros(2, 2)}}, r"another model: visual.proj has"),
    ):
        torch.save(content, tmp_path / "epoch_1.pt")
        with pytest.raises(ClipTrainError, match=message):
            load_openclip(run, Path(tmp_path / "epoch_1.pt"))
