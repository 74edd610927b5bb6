"""Random weights that are drawn tensor by tensor, each from a seed of its own name.

So they depend neither on the device nor on the order of drawing, and a process can draw them one after another and
keep a part of each. A model is built on the meta device, where the calls that make its tensors are recorded, and the
calls behind one tensor are repeated on the CPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from clip_models.model import CLIP, build_model, build_shapes
from clip_models.specs import ModelSpec


class Drawing:
    """Draws the weights of a model one by one. Its towers are of kinds that draw on the meta device."""

    def __init__(self, spec: ModelSpec, seed: int) -> None:
        self._seed, self._calls = seed, _Calls()
        with torch.device("meta"), _Constants(self._calls), self._calls:
            self._named = dict(named_tensors(build_model(spec)))

    def value(self, name: str) -> Tensor:
        """Returns a parameter or buffer of the model by its name, on the CPU. Changes no generator."""
        with torch.random.fork_rng(devices=[]), torch.no_grad(), torch.device("cpu"):
            torch.default_generator.manual_seed(_seed_of(self._seed, name))
            return self._calls.repeat(self._named[name])


def draws_by_name(spec: ModelSpec) -> bool:
    """Whether each tensor of the model is drawn from its own name. Otherwise they are drawn together, in order."""
    return spec.vision.draws_on_meta and spec.text.draws_on_meta


def draw_model(spec: ModelSpec, seed: int) -> CLIP:
    """Returns the model of a spec on the CPU, with random weights from a seed. Changes no generator."""
    if not draws_by_name(spec):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reset those of the accelerators too
            return build_model(spec)
    drawing, model = Drawing(spec, seed), build_shapes(spec).to_empty(device="cpu")
    with torch.no_grad():
        for name, tensor in named_tensors(model):
            tensor.copy_(drawing.value(name))
    return model


class _Calls(TorchDispatchMode):
    """The calls that make or change tensors on the meta device. A tensor is known by its storage."""

    def __init__(self) -> None:
        super().__init__()
        self._made: list[tuple[Any, Any, Any, list[Tensor]]] = []  # with the tensors, whose storages stay
        self._of: dict[int, list[int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.add(func, args, kwargs, out)
        return out

    def add(self, func: Callable[..., Any], args: Any, kwargs: Any, out: Any, *, anew: bool = False) -> None:
        """Records a call. In place or not, what it changes is what it returns; `anew`: whatever was there before."""
        made = [leaf for leaf in tree_flatten(out)[0] if isinstance(leaf, Tensor) and leaf.is_meta]
        if made:
            for key in {_storage(tensor) for tensor in made}:
                if anew:
                    self._of.pop(key, None)
                self._of.setdefault(key, []).append(len(self._made))
            self._made.append((func, args, kwargs, made))

    def repeat(self, tensor: Tensor) -> Tensor:
        """Makes one tensor again, on the CPU, from the current state of the generator."""
        real: dict[int, torch.UntypedStorage] = {}

        def found(meta: Tensor) -> Tensor:
            if not meta.is_meta:
                return meta
            empty = torch.empty(0, dtype=meta.dtype)
            return empty.set_(real[_storage(meta)], meta.storage_offset(), meta.size(), meta.stride())

        for number in self._behind(_storage(tensor)):
            func, args, kwargs, made = self._made[number]
            args, kwargs = tree_map_only(Tensor, found, (args, kwargs))
            out = func(*args, **{**kwargs, **({"device": torch.device("cpu")} if "device" in kwargs else {})})
            leaves = [leaf for leaf in tree_flatten(out)[0] if isinstance(leaf, Tensor)]
            for meta, leaf in zip(made, leaves, strict=True):
                real.setdefault(_storage(meta), leaf.untyped_storage())
        return found(tensor.detach())

    def _behind(self, storage: int) -> list[int]:
        """Returns the calls that a storage's values come from, in order."""
        wanted: set[int] = set()
        open_ = [(storage, len(self._made))]
        while open_:
            key, before = open_.pop()
            for number in self._of.get(key, ()):
                if number < before and number not in wanted:
                    wanted.add(number)
                    _, args, kwargs, _ = self._made[number]
                    inputs = tree_flatten((args, kwargs))[0]
                    open_ += [(_storage(leaf), number) for leaf in inputs if isinstance(leaf, Tensor) and leaf.is_meta]
        return sorted(wanted)


class _Constants(TorchFunctionMode):
    """Records the values of `torch.tensor(values)`, which a meta tensor does not have."""

    def __init__(self, calls: _Calls) -> None:
        super().__init__()
        self._calls = calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func in (torch.tensor, torch.as_tensor) and out.is_meta:
            value = func(*args, **{**kwargs, "device": "cpu"})
            self._calls.add(value.clone, (), {}, out, anew=True)
        return out


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields the parameters and buffers of a model with their names."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def _seed_of(seed: int, name: str) -> int:
    plain = name.removeprefix("text.")  # the names of a text tower depend on the layout, its weights do not
    return int.from_bytes(hashlib.blake2b(f"{seed} {plain}".encode(), digest_size=8).digest()) >> 1
