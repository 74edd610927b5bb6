"""Random weights that are drawn tensor by tensor, each from a seed of its own name.

So they depend neither on the device nor on the order of drawing, and a process can draw them one after another and
keep a part of each. A model is built on the CPU without drawing: the calls that make its tensors are recorded, and
those whose values depend on random numbers are not made, so that their memory stays untouched and takes no place. To
draw a tensor, the calls behind it are made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from clip_models.errors import ClipModelsError
from clip_models.model import CLIP, build_model, build_shapes
from clip_models.specs import ModelSpec
from clip_models.towers.common import truncated_normal_by


class Drawing:
    """Draws the weights of a model one by one. Raises ClipModelsError for a tower that reads its random numbers."""

    def __init__(self, spec: ModelSpec, seed: int) -> None:
        self._seed, self._calls = seed, _Calls()
        with torch.random.fork_rng(devices=[]), torch.device("cpu"), self._calls.recording():
            self.shapes = dict(named_tensors(build_model(spec)))
            """parameters and buffers by name, with memory that is not to be read"""

    def value(self, name: str) -> Tensor:
        """Returns a parameter or buffer of the model by its name, on the CPU. Changes no generator."""
        with torch.random.fork_rng(devices=[]), torch.no_grad(), torch.device("cpu"):
            torch.default_generator.manual_seed(_seed_of(self._seed, name))
            return self._calls.repeat(self.shapes[name].detach())


def draw_model(spec: ModelSpec, seed: int) -> CLIP:
    """Returns the model of a spec on the CPU, with random weights from a seed. Changes no generator."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reset those of the accelerators too
        try:
            drawing = Drawing(spec, seed)
        except ClipModelsError:
            return build_model(spec)  # drawn in order
    model = build_shapes(spec).to_empty(device="cpu")
    with torch.no_grad():
        for name, tensor in named_tensors(model):
            tensor.copy_(drawing.value(name))
    return model


class _Call(NamedTuple):
    func: Callable[..., Any]
    args: Any
    kwargs: Any
    made: list[Tensor]
    """what it makes or changes; they keep their storages, by which a tensor is known"""


class _Calls(TorchDispatchMode):
    """Records the calls that make or change tensors, and makes those that depend on no random number."""

    def __init__(self) -> None:
        super().__init__()
        self._made: list[_Call] = []
        self._of: dict[int, list[int]] = {}
        self._random: set[int] = set()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Records the calls within it. Raises ClipModelsError for one that reads a tensor of random numbers."""
        with self, truncated_normal_by(partial(self._fill, nn.init.trunc_normal_)), _Unread(self._random):
            yield

    def _fill(self, func: Callable[..., Any], tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Records a function of several calls that fills a tensor with random numbers as one call."""
        self._random.add(_storage(tensor))
        self._add(_Call(func, (tensor, *args), kwargs, [tensor]))
        return tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for tensor in inputs:
            if _storage(tensor) not in self._of:  # values from outside, such as those of torch.tensor(values)
                self._add(_Call(partial(_copied, tensor, tensor.untyped_storage().clone()), (), {}, [tensor]))
        later = torch.Tag.nondeterministic_seeded in func.tags or any(_storage(x) in self._random for x in inputs)
        out = _unmade(func, args, kwargs) if later and not func.is_view else func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if func._schema.is_mutable and not func._schema.returns:
            raise ClipModelsError(f"a tower changes tensors while it is built by a call that returns none ({func})")
        if made:
            self._add(_Call(func, args, kwargs, made))
            if later:
                self._random |= {_storage(tensor) for tensor in made}
        return out

    def _add(self, call: _Call) -> None:
        for key in {_storage(tensor) for tensor in call.made}:
            self._of.setdefault(key, []).append(len(self._made))
        self._made.append(call)

    def repeat(self, tensor: Tensor) -> Tensor:
        """Makes one tensor, from the current state of the generator."""
        real: dict[int, torch.UntypedStorage] = {}

        def found(recorded: Tensor) -> Tensor:
            return _placed(recorded, real[_storage(recorded)])

        for number in self._behind(_storage(tensor)):
            call = self._made[number]
            args, kwargs = tree_map_only(Tensor, found, (call.args, call.kwargs))
            out = call.func(*args, **kwargs)
            for recorded, leaf in zip(call.made, (x for x in tree_leaves(out) if isinstance(x, Tensor)), strict=True):
                real.setdefault(_storage(recorded), leaf.untyped_storage())
        return found(tensor)

    def _behind(self, storage: int) -> list[int]:
        """Returns the calls that a storage's values come from, in order."""
        wanted: set[int] = set()
        open_ = [(storage, len(self._made))]
        while open_:
            key, before = open_.pop()
            for number in self._of.get(key, ()):
                if number < before and number not in wanted:
                    wanted.add(number)
                    call = self._made[number]
                    inputs = tree_leaves((call.args, call.kwargs))
                    open_ += [(_storage(leaf), number) for leaf in inputs if isinstance(leaf, Tensor)]
        return sorted(wanted)


class _Unread(TorchFunctionMode):
    """Raises ClipModelsError for functions that read a tensor without a call that could be recorded."""

    _READS = frozenset((Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__deepcopy__))

    def __init__(self, random: Set[int]) -> None:
        super().__init__()
        self._random = random

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._READS and _storage(args[0]) in self._random:
            raise ClipModelsError(f"a tower reads its random numbers while it is built ({func})")
        return func(*args, **(kwargs or {}))


def _unmade(func: Any, args: Any, kwargs: Any) -> Any:
    """Returns what a call would, without its values: the tensors that it changes, or new ones that are empty.

    Raises ClipModelsError for a call that returns numbers.
    """
    schema = func._schema
    written = [
        (args[number] if number < len(args) else kwargs.get(each.name))
        for number, each in enumerate(schema.arguments)
        if each.alias_info is not None and each.alias_info.is_write
    ]
    if written and all(each.alias_info is not None for each in schema.returns):
        return written[0] if len(written) == 1 else tuple(written)
    if written or not all("Tensor" in str(each.type) for each in schema.returns):
        raise ClipModelsError(f"a tower reads its random numbers while it is built ({func})")
    meta = {**kwargs, **({"device": torch.device("meta")} if "device" in kwargs else {})}
    out = func(*tree_map_only(Tensor, _shape, args), **tree_map_only(Tensor, _shape, meta))
    return tree_map_only(Tensor, lambda x: torch.empty_strided(x.size(), x.stride(), dtype=x.dtype), out)


def _placed(like: Tensor, storage: torch.UntypedStorage) -> Tensor:
    """Returns the view of a storage that a tensor is of its own."""
    return torch.empty(0, dtype=like.dtype).set_(storage, like.storage_offset(), like.size(), like.stride())


def _copied(like: Tensor, storage: torch.UntypedStorage) -> Tensor:
    return _placed(like, storage.clone())


def _shape(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields the parameters and buffers of a model with their names."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def _seed_of(seed: int, name: str) -> int:
    plain = name.removeprefix("text.")  # the names of a text tower depend on the layout, its weights do not
    return int.from_bytes(hashlib.blake2b(f"{seed} {plain}".encode(), digest_size=8).digest()) >> 1
