import itertools
import math

import pytest
import torch

from clip_train.config import OptimConfig
from clip_train.errors import ClipTrainError
from clip_train.loop import Hook, Loop, Step
from clip_train.optim.build import make_optimizer


class Square:
    """The task of bringing a weight to zero, and its gradient."""

    def __init__(self) -> None:
        self.model = torch.nn.Module()
        self.model.weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
        self.constrained = 0

    def prepare(self, batch):
        return batch

    def backward(self, batch, step):
        loss = (self.model.weight * batch["factor"]).square().sum() / 2
        loss.backward()
        return {"loss": loss.detach()}

    def report(self):
        return {}

    def after_step(self):
        self.constrained += 1


class Recorder(Hook):
    def __init__(self) -> None:
        self.started, self.steps, self.ended = 0, [], 0

    def on_start(self, loop: Loop) -> None:
        self.started += 1

    def on_step(self, loop: Loop, step: Step) -> None:
        self.steps.append(step)

    def on_end(self, loop: Loop) -> None:
        self.ended += 1


def make_loop(factors, **options) -> tuple[Loop, Recorder]:
    task, recorder = Square(), Recorder()
    optimizer = make_optimizer(task.model, OptimConfig(lr=1.0, weight_decay=0.0))
    batches = ({"factor": factor} for factor in factors)
    options = {"rate": lambda step: 0.1 / (step + 1), "steps": 3, **options}
    return Loop(task=task, gradients=task, optimizer=optimizer, batches=batches, hooks=[recorder], **options), recorder


def test_hooks_see_every_step_with_its_rate_and_its_gradient_norm():
    loop, recorder = make_loop(itertools.repeat(1.0))
    loop.run()
    assert [step.step for step in recorder.steps] == [1, 2, 3]
    assert [step.lr for step in recorder.steps] == [0.1, 0.05, 0.1 / 3]
    assert recorder.steps[0].losses == {"loss": 12.5}
    assert recorder.steps[0].grad_norm == 5.0
    assert (recorder.started, recorder.ended, loop.task.constrained) == (1, 1, 3)
    assert loop.metrics["loss"] == recorder.steps[-1].losses["loss"] < 12.5


def test_a_loop_continues_where_it_is_told_to():
    loop, recorder = make_loop(itertools.repeat(1.0), start=2)
    loop.run()
    assert [(step.step, step.lr) for step in recorder.steps] == [(3, 0.1 / 3)]


@pytest.mark.parametrize(("limit", "used"), [(1.0, 1.0), (100.0, 5.0), (0.0, 5.0)])
def test_the_gradient_is_clipped_to_its_norm_and_reported_as_it_was(limit, used):
    loop, recorder = make_loop([1.0], steps=1, grad_clip_norm=limit)
    seen = []
    loop.optimizer.register_step_pre_hook(lambda *_: seen.append(float(loop.task.model.weight.grad.norm())))
    loop.run()
    assert seen == pytest.approx([used], rel=1e-5)
    assert recorder.steps[0].grad_norm == 5.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e18])  # the last: a finite loss with a gradient that is not
def test_what_is_not_finite_never_reaches_the_weights(bad):
    loop, recorder = make_loop([1.0, bad])
    weights = []
    recorder.on_step = lambda loop, step: weights.append(loop.task.model.weight.detach().clone())
    with pytest.raises(ClipTrainError, match=r"step 2: the loss is .* Lower optim\.lr"):
        loop.run()
    assert len(weights) == 1
    assert torch.equal(loop.task.model.weight.detach(), weights[0])
    assert recorder.ended == 1


def test_a_parameter_that_the_loss_does_not_reach_is_named():
    loop, _ = make_loop([1.0])
    loop.task.model.decoder = torch.nn.Linear(2, 2)
    with pytest.raises(ClipTrainError, match=r"2 parameters .* no gradient .*\(decoder\.weight, decoder\.bias\)"):
        loop.run()
    loop.task.model.decoder.requires_grad_(False)  # locked on purpose
    loop, _ = make_loop([1.0], steps=1)
    loop.run()
