import itertools
import math

import pytest
import torch

from clip_train.errors import ClipTrainError
from clip_train.feed import Feed
from clip_train.loop import LAG, Hook, Loop, Step
from clip_train.optim.build import Optimization
from clip_train.optim.config import OptimConfig, SpikeConfig
from clip_train.parallel import World


class Square:
    """The task of bringing a weight to zero, and its gradient."""

    def __init__(self) -> None:
        self.model = torch.nn.Module()
        self.model.weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
        self.constrained = 0

    texts: dict = {}  # noqa: RUF012

    def tensors(self, batch):
        return {"factor": torch.tensor(batch["factor"])}

    def lengths(self, tensors):
        return {}

    def tokens(self, tensors):
        return 0

    def moved(self, tensor):
        return tensor

    def backward(self, batch, step):
        loss = (self.model.weight * batch["factor"]).square().sum() / 2
        loss.backward()
        return {"loss": loss.detach()}

    def after_step(self):
        self.constrained += 1


class Factors:
    """A stream of factors, which counts them."""

    def __init__(self, factors) -> None:
        self._factors, self.read = iter(factors), 0

    def __iter__(self):
        return self

    def __next__(self):
        factor = next(self._factors)
        self.read += 1
        return {"factor": factor}

    @property
    def stats(self):
        return {"samples": self.read, "corrupt": 0}

    def state_dict(self):
        return {"step": self.read}


class Recorder(Hook):
    def __init__(self) -> None:
        self.started, self.steps, self.ended = 0, [], 0

    def on_start(self, loop: Loop) -> None:
        self.started += 1

    def on_step(self, loop: Loop, step: Step) -> None:
        self.steps.append(step)

    def on_end(self, loop: Loop) -> None:
        self.ended += 1


def make_loop(factors, optim=(), **options) -> tuple[Loop, Recorder]:
    task, recorder = Square(), Recorder()
    parts = Optimization(task.model, OptimConfig(lr=1.0, weight_decay=0.0, **dict(optim)), torch.device("cpu"))
    feed = Feed(Factors(factors), task, World(0, 1, torch.device("cpu")))
    options = {"rate": lambda step: 0.1 / (step + 1), "steps": 3, **options}
    parts = {"optimizer": parts.optimizer, "clip": parts.clip, "guard": parts.guard}
    return Loop(task=task, gradients=task, feed=feed, hooks=[recorder], **parts, **options), recorder


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
    loop, recorder = make_loop([1.0], {"grad_clip_norm": limit}, steps=1)
    seen = []
    loop.optimizer.register_step_pre_hook(lambda *_: seen.append(float(loop.task.model.weight.grad.norm())))
    loop.run()
    assert seen == pytest.approx([used], rel=1e-5)
    assert recorder.steps[0].grad_norm == 5.0


def watched(recorder):
    """The weights after each update, as the device has them."""
    weights = []

    def on_update(loop, step):
        weights.append(loop.task.model.weight.detach().clone())
        return {}

    recorder.on_update = on_update
    return weights


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e18])  # the last: a finite loss with a gradient that is not
def test_what_is_not_finite_never_reaches_the_weights(bad):
    loop, recorder = make_loop([1.0, bad, 1.0, 1.0, 1.0], steps=5)
    weights = watched(recorder)
    with pytest.raises(ClipTrainError, match=r"step 2: the loss is .* Lower optim\.lr"):
        loop.run()
    assert [step.step for step in recorder.steps] == [1]
    assert all(torch.equal(later, weights[0]) for later in weights)
    assert torch.equal(loop.task.model.weight.detach(), weights[0])
    assert recorder.ended == 1


@pytest.mark.parametrize("name", ["adamw", "lion"])  # one that skips on the device, and one that does not
def test_a_spike_is_skipped_and_counted_and_the_run_goes_on(name):
    optim = {"name": name, "spike": SpikeConfig(action="skip", window=3)}
    factors = [1.0, 1.0, 1.0, 30.0, 1.0]
    loop, recorder = make_loop(factors, optim, steps=5, rate=lambda step: 0.01)
    weights = watched(recorder)
    loop.run()
    assert [step.skipped for step in recorder.steps] == [False, False, False, True, False]
    assert torch.equal(weights[3], weights[2])
    assert not torch.equal(weights[4], weights[3])
    assert loop.metrics["skipped"] == 1
    # Neither the weights nor the state have seen the spike: a run without it ends with the same bits.
    other, _ = make_loop([1.0] * 4, optim, steps=4, rate=lambda step: 0.01)
    other.run()
    assert torch.equal(other.task.model.weight, loop.task.model.weight)


def test_a_spike_stops_the_run_before_it_reaches_the_weights():
    loop, _ = make_loop([1.0, 1.0, 1.0, 30.0], {"spike": SpikeConfig(action="stop", window=3)}, steps=4)
    with pytest.raises(ClipTrainError, match=r"step 4: the loss is .* \(optim\.spike allows .*Lower optim\.lr"):
        loop.run()


def test_a_run_that_skips_too_often_ends():
    spike = SpikeConfig(action="skip", window=2, most=3)
    loop, recorder = make_loop([1.0, 1.0, *[50.0] * 9], {"spike": spike}, steps=11)
    with pytest.raises(ClipTrainError, match=r"step 6: .* in 4 steps in a row \(optim\.spike\.most = 3\)"):
        loop.run()
    assert len(recorder.steps) == 5


def test_the_rate_of_a_group_is_a_share_of_the_schedules():
    loop, recorder = make_loop([1.0] * 3, {"rates": {"weight": 0.5}})
    used = []
    loop.optimizer.register_step_pre_hook(lambda *_: used.append(loop.optimizer.param_groups[0]["lr"]))
    loop.run()
    assert used == [step.lr * 0.5 for step in recorder.steps]


def test_a_parameter_that_the_loss_does_not_reach_is_named():
    loop, _ = make_loop([1.0])
    loop.task.model.decoder = torch.nn.Linear(2, 2)
    with pytest.raises(ClipTrainError, match=r"2 parameters .* no gradient .*\(decoder\.weight, decoder\.bias\)"):
        loop.run()
    loop.task.model.decoder.requires_grad_(False)  # locked on purpose
    loop, _ = make_loop([1.0], steps=1)
    loop.run()


def test_values_are_read_some_steps_later_and_all_of_them_before_a_hook_that_needs_the_state():
    loop, recorder = make_loop([1.0] * 8, steps=8)
    seen = []
    recorder.on_update = lambda loop, step: seen.append(("launched", step)) or {}
    recorder.on_step = lambda loop, step: seen.append(("read", step.step))
    recorder.exact = lambda loop, step: step == 5
    loop.run()
    for step in range(1, 9):
        drained = 5 if step <= 5 else 8
        assert seen.index(("read", step)) > seen.index(("launched", min(step + LAG, drained)))
        assert ("launched", min(step + LAG, drained) + 1) not in seen[: seen.index(("read", step))]


def test_a_hook_measures_on_the_device():
    loop, recorder = make_loop([1.0] * 4, steps=4)
    recorder.on_update = lambda loop, step: {"weight": loop.task.model.weight.detach()[0, 0]} if step == 2 else {}
    loop.run()
    assert [set(step.measured) for step in recorder.steps] == [set(), {"weight"}, set(), set()]
    assert recorder.steps[1].measured["weight"] == pytest.approx(3 - 0.1 - 0.05, rel=1e-4)  # Adam moves by the rate


def test_a_stop_is_told_with_the_state_of_the_last_step_and_the_batches_it_has_used():
    loop, recorder = make_loop([1.0] * 9, steps=9)
    watch, stopped = loop.feed._world.watch, []

    def on_update(loop, step):
        watch.wanted = step == 4
        return {}

    def on_stop(loop, step):
        stopped.append((step, [each.step for each in recorder.steps], loop.stream_state["step"]))
        raise SystemExit

    recorder.on_update, recorder.on_stop = on_update, on_stop
    with pytest.raises(SystemExit):
        loop.run()
    assert stopped == [(4, [1, 2, 3, 4], 4)]
    assert recorder.ended == 1


def test_an_error_of_the_next_batch_waits_for_its_step():
    def factors():
        yield 1.0
        yield 1.0
        raise ClipTrainError("no third batch")

    loop, recorder = make_loop(factors(), steps=3)
    recorder.exact = lambda loop, step: True
    with pytest.raises(ClipTrainError, match="no third batch"):
        loop.run()
    assert [(step.step, step.counts["samples"]) for step in recorder.steps] == [(1, 1), (2, 2)]
