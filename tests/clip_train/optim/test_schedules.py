"""Learning rates against formulas of the papers and of OpenCLIP, written out here a second time."""

import math

import pytest

from clip_train.errors import ClipTrainError
from clip_train.optim.build import learning_rate
from clip_train.optim.config import OptimConfig, check_optim
from clip_train.optim.plan import make_plan


def rates(steps: int, batch_size: int = 1, epoch: int = 1000, **options) -> list[float]:
    config = OptimConfig(**{"lr": 2.0, **options})
    check_optim(config)
    plan = make_plan(config, steps=steps, batch_size=batch_size, epoch=epoch)
    return list(map(learning_rate(config, plan, batch_size), range(steps)))


def test_the_rate_warms_up_and_falls_to_zero_on_a_half_cosine():
    found = rates(104, warmup=4)
    assert found[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert found[54] == pytest.approx(1.0)
    assert found[29] == pytest.approx(1 + math.cos(math.pi / 4))
    assert 0 < found[-1] < 1e-3


def test_a_cosine_ends_at_the_final_share():
    found = rates(1000, final=0.1)
    assert found[500] == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert found[-1] == pytest.approx(0.2, rel=1e-4)


def test_a_constant_rate_stays():
    assert rates(5, warmup=2, schedule="constant") == [1.0, 2.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("end", [0.0, 0.25])
def test_wsd_is_openclips_constant_rate_with_a_cooldown(power, end):
    steps, warmup, cooldown = 50, 5, 20

    def openclip(step: int) -> float:
        if step < warmup:
            return 2.0 * (step + 1) / warmup
        start = steps - cooldown
        if step < start:
            return 2.0
        return (1 - (step - start) / cooldown) ** power * (2.0 - 2.0 * end) + 2.0 * end

    found = rates(steps, warmup=warmup, schedule="wsd", cooldown=cooldown, cooldown_power=power, final=end)
    assert found == pytest.approx([openclip(step) for step in range(steps)], rel=1e-12)


@pytest.mark.parametrize(("shape", "half"), [("linear", 0.5), ("sqrt", 1 - math.sqrt(0.5)), ("cosine", 0.5)])
def test_a_cooldown_has_the_shape_that_is_asked_for(shape, half):
    found = rates(20, schedule="wsd", cooldown=10, cooldown_shape=shape)
    assert found[:11] == [2.0] * 11
    assert found[15] == pytest.approx(2.0 * half)
    assert found[10:] == sorted(found[10:], reverse=True)
    assert found[-1] > 0


def test_rsqrt_falls_with_the_root_of_the_samples_and_cools_down():
    found = rates(100, warmup=4, schedule="rsqrt", timescale=16, cooldown=10)
    assert found[4] == 2.0
    assert found[4 + 48] == pytest.approx(1.0)  # sqrt(16 / (16 + 48))
    assert found[95] == pytest.approx(2.0 * math.sqrt(16 / (16 + 91)) * 0.5)
    assert rates(100, warmup=4, schedule="rsqrt")[4 + 12] == pytest.approx(1.0)  # the warm-up is the time scale


@pytest.mark.parametrize("schedule", ["wsd", "rsqrt"])
def test_a_longer_run_has_the_same_rates_until_its_cooldown(schedule):
    short = rates(100, warmup=10, schedule=schedule, cooldown=20)
    long = rates(300, warmup=10, schedule=schedule, cooldown=20)
    assert long[:80] == short[:80]
    assert long[81] != short[81]


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": "cosine"},
        {"schedule": "constant"},
        {"schedule": "wsd", "cooldown": "800 samples", "cooldown_shape": "sqrt"},
        {"schedule": "rsqrt", "cooldown": "800 samples"},
    ],
)
def test_runs_with_other_batch_sizes_have_the_same_rates_at_the_same_samples(options):
    one = rates(400, 8, warmup="480 samples", **options)
    two = rates(200, 16, warmup="480 samples", **options)
    assert two[:30] == one[1:60:2]  # warm-up: after the same samples
    assert two[30:] == one[60::2]  # then: before the same samples


@pytest.mark.parametrize("length", [4, "4 steps", "32 samples", "0.032k samples", "0.5 epochs", "10%"])
def test_a_length_has_a_unit(length):
    plan = make_plan(OptimConfig(warmup=length), steps=40, batch_size=8, epoch=64)
    assert (plan.total, plan.warmup) == (320, 32)


@pytest.mark.parametrize("length", [-1, "four", "3 days", "", "1e3 steps", "-2 steps"])
def test_what_is_no_length_is_named(length):
    with pytest.raises(ClipTrainError, match=r"optim\.cooldown = .*'10M samples'"):
        check_optim(OptimConfig(schedule="wsd", cooldown=length))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"warmup": "400 samples"}, "optim.warmup = 400 samples (400 samples) must be below the 40 steps"),
        ({"warmup": 41, "schedule": "constant"}, "optim.warmup = 41 (328 samples)"),
        ({"warmup": 30, "schedule": "wsd", "cooldown": 11}, "optim.cooldown = 11 (88 samples) and optim.warmup = 30"),
        ({"schedule": "rsqrt"}, "optim.timescale or optim.warmup: set one"),
    ],
)
def test_a_plan_that_does_not_fit_the_run_is_refused(options, named):
    with pytest.raises(ClipTrainError) as error:
        make_plan(OptimConfig(**options), steps=40, batch_size=8, epoch=64)
    assert named in str(error.value)
