"""Hooks of the training loop, one file each."""

from clip_train.hooks.averaging import Averaging
from clip_train.hooks.base import RunHook
from clip_train.hooks.benchmarks import Benchmarks
from clip_train.hooks.corrupt import CorruptLimit
from clip_train.hooks.logging import Logging
from clip_train.hooks.profiling import Profiling
from clip_train.hooks.saving import Saving
from clip_train.hooks.validation import Validation

__all__ = ["Averaging", "Benchmarks", "CorruptLimit", "Logging", "Profiling", "RunHook", "Saving", "Validation"]
