"""Models without memory: names and shapes of parameters in a fraction of a second."""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

# Of tensors, and of torch.nn.init.
_FILLS = {"normal_", "uniform_", "erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_", "copy_", "constant_"}
_FILLS |= {"kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "trunc_normal_"}

Shapes = dict[str, list[int]]


class meta_device(TorchFunctionMode):
    """As `with torch.device("meta")`, but filling tensors that have no memory costs nothing."""

    def __enter__(self) -> "meta_device":
        self.device = torch.device("meta")
        self.device.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.device.__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _FILLS:
            filled = args[0] if args else kwargs["tensor"]
            if filled.is_meta:
                return filled
        return func(*args, **kwargs)


def shapes_of(model: torch.nn.Module) -> tuple[Shapes, list[str]]:
    """(shape of every entry of the state dict, names of the parameters in sorted order)."""
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    return shapes, sorted(name for name, _ in model.named_parameters())


def difference(ours: Shapes, theirs: Shapes) -> str:
    """The first few disagreements, or ""."""
    lines = [f"missing {name} {theirs[name]}" for name in theirs if name not in ours]
    lines += [f"extra {name} {ours[name]}" for name in ours if name not in theirs]
    lines += [f"{name} {ours[name]} not {theirs[name]}" for name in ours if ours[name] != theirs.get(name, ours[name])]
    return "; ".join(lines[:5]) + (f"; and {len(lines) - 5} more" if len(lines) > 5 else "")
