"""No step waits for the device: what would is an error here, on a CPU, and on CUDA by its own debug mode."""

import sys

import numpy as np
import pytest
import torch

from clip_models import create_model
from clip_train.feed import Feed
from clip_train.gradients import Gradients
from clip_train.hooks import Averaging
from clip_train.loop import Loop
from clip_train.optim.build import Optimization
from clip_train.optim.config import EmaConfig, OptimConfig, SpikeConfig
from clip_train.parallel import World
from clip_train.tasks.contrastive import ContrastiveConfig
from tests.support.waits import Waited, no_waiting

CPU = torch.device("cpu")


class Random:
    """A stream of random samples."""

    stats = {"samples": 0, "corrupt": 0}  # noqa: RUF012

    def __init__(self, model, size=4):
        self._spec, self._size, self._draw = model.spec, size, np.random.default_rng(0)

    def __iter__(self):
        return self

    def __next__(self):
        height, width = self._spec.preprocess.size
        text = np.zeros((self._size, self._spec.text.context_length), np.int64)
        text[:, :6] = self._draw.integers(1, self._spec.text.vocab_size - 1, (self._size, 6))
        text[:, 6] = self._spec.text.vocab_size - 1
        image = self._draw.integers(0, 256, (self._size, 3, height, width), np.uint8)
        return {"image": image, "text": text, "uid": [f"{each:032x}" for each in range(self._size)]}

    def state_dict(self):
        return {}


def make_loop(device, *, micro_batches=1, steps=4, precision="fp32", **optim):
    world = World(0, 1, device)
    model = create_model("ViT-Ti-4-24", seed=0, force_patch_dropout=0.5).train()
    task = ContrastiveConfig().build(model, precision=precision, world=world)
    parts = Optimization(model, OptimConfig(lr=1e-3, ema=EmaConfig(decay=0.9), **optim), device)
    return Loop(
        task=task,
        gradients=Gradients(task, world, micro_batches=micro_batches),
        optimizer=parts.optimizer,
        clip=parts.clip,
        guard=parts.guard,
        feed=Feed(Random(model), task, world),
        rate=lambda step: 1e-3,
        steps=steps,
        hooks=[Averaging(ema=parts.ema)],
    )


@pytest.fixture
def accelerated(monkeypatch):
    """Token ids are not checked, as on an accelerator, where that would wait."""
    for name, module in list(sys.modules.items()):
        if name.startswith("clip_models") and hasattr(module, "may_look"):
            monkeypatch.setattr(module, "may_look", lambda text: False)


def launch_all(loop):
    """Launches every step, as `run` does, and fails where the host would wait in one."""
    for number in range(loop.steps):
        fed = loop.feed.take()
        with no_waiting():
            launched = loop._launch(number, fed)
        loop._settle(launched, launched.values.read())


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"grad_clip_norm": 1.0, "spike": SpikeConfig(action="skip", window=2)},
        {"grad_clip": {"image": 1.0}, "micro_batches": 2},
        {"name": "sgd", "precision": "bf16"},
    ],
)
def test_no_step_waits_for_the_device(accelerated, options):
    loop = make_loop(CPU, **options)
    launch_all(loop)
    assert loop.metrics["loss"] > 0


@pytest.mark.parametrize("name", ["lion", "adamw-schedulefree"])
def test_an_optimizer_without_a_condition_on_the_device_waits_for_the_verdict(accelerated, name):
    loop = make_loop(CPU, name=name, **({"schedule": "constant"} if "free" in name else {}))
    with pytest.raises(Waited):
        launch_all(loop)


@pytest.mark.parametrize("act", [torch.Tensor.item, bool, float, torch.Tensor.tolist, torch.nonzero])
def test_the_mode_finds_what_waits(act):
    with pytest.raises(Waited), no_waiting():
        act(torch.ones(()) if act is not torch.nonzero else torch.ones(2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_step_waits_for_a_cuda_device():
    loop = make_loop(torch.device("cuda", 0), spike=SpikeConfig(action="skip", window=2), precision="bf16")
    loop._launch(0, loop.feed.take())  # the first step sets libraries up
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(1, 4):
            loop._launch(number, loop.feed.take())
    finally:
        torch.cuda.set_sync_debug_mode("default")
