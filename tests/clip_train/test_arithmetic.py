"""Threads, generators and deterministic kernels of a run: as the config says, and the caller's again afterwards."""

import os
import warnings
from contextlib import nullcontext

import pytest
import torch

from clip_train import TrainConfig
from clip_train.arithmetic import arithmetic, deterministic_mode
from tests.support.steps import HERE


def put() -> None:
    """An operation that has no deterministic kernel on any device."""
    torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize("mode", ["off", "warn", "strict", "auto"])
def test_what_has_no_deterministic_kernel_is_allowed_told_or_refused(mode):
    refused = pytest.raises(RuntimeError, match="does not have a deterministic implementation")
    told = pytest.warns(UserWarning, match="does not have a deterministic implementation")
    expected = {"off": nullcontext(), "warn": told, "strict": refused, "auto": refused}[mode]
    with arithmetic(TrainConfig(steps=1, deterministic=mode), HERE), expected, warnings.catch_warnings():
        if mode == "off":
            warnings.simplefilter("error")
        put()


def test_auto_is_strict_where_it_costs_nothing():
    assert deterministic_mode(TrainConfig(steps=1), torch.device("cpu")) == "strict"
    assert deterministic_mode(TrainConfig(steps=1), torch.device("cuda")) == "off"


def test_the_caller_s_settings_come_back_also_after_an_error(monkeypatch):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    threads, state = torch.get_num_threads(), torch.get_rng_state()

    def fail() -> None:
        with arithmetic(TrainConfig(steps=1, threads=1, seed=3), HERE):
            assert not torch.utils.deterministic.fill_uninitialized_memory
            assert torch.get_num_threads() == 1
            torch.rand(3)
            raise KeyError

    try:
        with pytest.raises(KeyError):
            fail()
        assert torch.utils.deterministic.fill_uninitialized_memory
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.get_num_threads() == threads
        assert torch.equal(torch.get_rng_state(), state)
    finally:
        torch.use_deterministic_algorithms(False)
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_a_seed_and_a_rank_name_the_draws():
    def drawn(seed: int) -> torch.Tensor:
        with arithmetic(TrainConfig(steps=1, seed=seed), HERE):
            return torch.rand(4)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
