"""Relative errors of the gradients of all losses on 1 to 4 ranks, beside those of OpenCLIP's options.

    uv run tests/benchmarks/gradient_errors.py [--ranks 1 2 3 4] [--json FILE]

Against the formula in float64 on the whole batch, for towers of one matrix each that DistributedDataParallel trains on
gloo processes. "towers" is the error of their gradients as one vector, "scale" that of the scale of the logits.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from open_clip.loss import ClipLoss, CoCaLoss, DistillClipLoss, SigLipLoss
from torch import Tensor

from clip_train.losses.caption import caption_loss
from clip_train.losses.contrastive import contrastive_loss
from clip_train.losses.distillation import distillation_loss
from clip_train.losses.global_contrastive import global_contrastive_loss
from clip_train.losses.matryoshka import matryoshka
from clip_train.losses.sigmoid import sigmoid_loss
from clip_train.parallel import World, join_world

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.support import dense_losses as dense
from tests.support import distributed

SAMPLES, WIDTH, VOCAB, LENGTH = 48, 32, 17, 6
DIMS = (8, 16, 32)
GLOBAL = {"gamma": 0.3, "eps": 1e-3, "rho": 2.0}


@dataclass
class Inputs:
    """What towers and batch give a loss, of a rank or of the whole batch."""

    x: Tensor
    y: Tensor
    scale: Tensor
    bias: Tensor
    logits: Tensor
    labels: Tensor
    groups: Tensor
    teacher: tuple[Tensor, Tensor, Tensor]
    u_2N: Tensor

    @property
    def pair(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.x, self.y, self.scale


Loss = Callable[[Inputs, World], Tensor]
Formula = Callable[[Inputs], Tensor]


def dense_global(i: Inputs) -> Tensor:
    return dense.global_contrastive(i.x, i.y, i.scale.reciprocal().expand(2, len(i.x)), i.u_2N, **GLOBAL)[0]


def dense_coca(i: Inputs) -> Tensor:
    return dense.contrastive(*i.pair) + 2 * dense.caption(i.logits, i.labels, 0)


def dense_contrastive(i: Inputs) -> Tensor:
    return dense.contrastive(*i.pair)


def dense_siglip(i: Inputs) -> Tensor:
    return dense.sigmoid(*i.pair, i.bias)


def dense_distillation(i: Inputs) -> Tensor:
    return dense.contrastive(*i.pair) + dense.distillation(*i.pair, i.teacher)


OURS: dict[str, tuple[Formula, Loss]] = {
    "contrastive": (dense_contrastive, lambda i, w: contrastive_loss(*i.pair, ranks=w.size)),
    "contrastive, label smoothing": (
        lambda i: dense.contrastive(*i.pair, label_smoothing=0.1),
        lambda i, w: contrastive_loss(*i.pair, ranks=w.size, label_smoothing=0.1),
    ),
    "contrastive, duplicates": (
        lambda i: dense.contrastive(*i.pair, groups=i.groups),
        lambda i, w: contrastive_loss(*i.pair, ranks=w.size, groups=i.groups),
    ),
    "contrastive, bf16 logits": (
        dense_contrastive,
        lambda i, w: contrastive_loss(*i.pair, ranks=w.size, logits="bf16"),
    ),
    "contrastive, Matryoshka": (
        lambda i: dense.matryoshka(*i.pair, DIMS, (1.0,) * 3),
        lambda i, w: matryoshka(contrastive_loss, DIMS)(*i.pair, ranks=w.size),
    ),
    "siglip, ring": (dense_siglip, lambda i, w: sigmoid_loss(*i.pair, i.bias, ranks=w.size)),
    "siglip, gather": (dense_siglip, lambda i, w: sigmoid_loss(*i.pair, i.bias, ranks=w.size, exchange="gather")),
    "siglip, duplicates": (
        lambda i: dense.sigmoid(*i.pair, i.bias, groups=i.groups),
        lambda i, w: sigmoid_loss(*i.pair, i.bias, ranks=w.size, groups=i.groups),
    ),
    "coca": (
        dense_coca,
        lambda i, w: contrastive_loss(*i.pair, ranks=w.size) + 2 * caption_loss(i.logits, i.labels, ranks=w.size),
    ),
    "distillation": (
        dense_distillation,
        lambda i, w: contrastive_loss(*i.pair, ranks=w.size) + distillation_loss(*i.pair, *i.teacher, ranks=w.size),
    ),
    "global (FastCLIP v3)": (
        dense_global,
        lambda i, w: global_contrastive_loss(*i.pair, i.u_2N.log(), ranks=w.size, **GLOBAL).loss,
    ),
}


def clip_kwargs(local: bool, grad: bool, world: World) -> dict[str, object]:
    return {"local_loss": local, "gather_with_grad": grad, "rank": world.rank, "world_size": world.size}


def their_clip(i: Inputs, w: World, local: bool, grad: bool) -> Tensor:
    return ClipLoss(**clip_kwargs(local, grad, w))(*i.pair)


def their_coca(i: Inputs, w: World, local: bool, grad: bool) -> Tensor:
    loss = CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0, pad_id=0, **clip_kwargs(local, grad, w))
    return sum(loss(i.x, i.y, i.logits, i.labels, i.scale))


def their_distillation(i: Inputs, w: World, local: bool, grad: bool) -> Tensor:
    return sum(DistillClipLoss(**clip_kwargs(local, grad, w))(*i.pair, *i.teacher))


def their_siglip(i: Inputs, w: World, way: str) -> Tensor:
    return SigLipLoss(rank=w.rank, world_size=w.size, dist_impl=way)(*i.pair, i.bias)


OPEN_CLIP: dict[str, tuple[Formula, Loss]] = {
    f"OpenCLIP {task}, local_loss={local:d}, gather_with_grad={grad:d}": (
        formula,
        partial(loss, local=local, grad=grad),
    )
    for task, formula, loss in (
        ("contrastive", dense_contrastive, their_clip),
        ("coca", dense_coca, their_coca),
        ("distillation", dense_distillation, their_distillation),
    )
    for local in (False, True)
    for grad in (False, True)
} | {
    f"OpenCLIP siglip, {way}": (dense_siglip, partial(their_siglip, way=way))
    for way in ("bidir", "shift", "reduce", "gather")
}


def gradients(loss: Formula, part: slice, dtype: torch.dtype) -> list[Tensor]:
    """Gradients of two towers, a decoder, the scale and the bias."""
    generator = torch.Generator().manual_seed(1)
    towers = torch.randn(2, WIDTH, WIDTH, generator=generator)
    decoder = torch.randn(WIDTH, LENGTH * VOCAB, generator=generator) / 4
    labels = torch.randint(1, VOCAB, (SAMPLES, LENGTH), generator=generator)
    lengths = torch.randint(1, LENGTH + 1, (SAMPLES, 1), generator=generator)
    teacher = [F.normalize(each, dim=-1) for each in torch.randn(2, SAMPLES, 24, generator=generator)]
    groups = torch.randint(-1, 20, (SAMPLES,), generator=generator)
    u_2N = torch.rand(2, SAMPLES, generator=generator)
    scalars = torch.tensor(20.0), torch.tensor(-10.0)
    leaves = [t.to(dtype).clone().requires_grad_() for t in (*towers, decoder, *scalars)]
    whole = [each[part].to(dtype) for each in dense.features(SAMPLES, WIDTH)]
    x, y = (F.normalize(each @ tower, dim=-1) for each, tower in zip(whole, leaves[:2], strict=True))
    inputs = Inputs(
        *(x, y, *leaves[3:]),
        logits=(y @ leaves[2]).view(-1, LENGTH, VOCAB),
        labels=labels.where(torch.arange(LENGTH) < lengths, 0)[part],
        groups=groups[part],
        teacher=(*(each[part].to(dtype) for each in teacher), torch.tensor(15.0, dtype=dtype)),
        u_2N=u_2N.to(dtype),
    )
    return list(torch.autograd.grad(loss(inputs), leaves, allow_unused=True, materialize_grads=True))


def errors_on_this_rank() -> dict[str, tuple[float, float]]:
    results = {}
    with join_world("cpu") as world:
        share = slice(world.rank * SAMPLES // world.size, (world.rank + 1) * SAMPLES // world.size)
        for name, (formula, loss) in (OURS | OPEN_CLIP).items():
            wanted = gradients(formula, slice(None), torch.float64)
            found = gradients(lambda inputs, loss=loss: loss(inputs, world), share, torch.float32)
            for gradient in found if world.size > 1 else ():
                dist.all_reduce(gradient, op=dist.ReduceOp.SUM)
            found = [gradient / world.size for gradient in found]
            both = [torch.cat([tower.flatten() for tower in grads[:3]]) for grads in (found, wanted)]
            results[name] = dense.relative_error(*both), dense.relative_error(found[3], wanted[3])
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2, 3, 4])
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    distributed.TIMEOUT_S = 1800  # also on a busy machine
    found = {size: distributed.run_ranks(size, errors_on_this_rank)[0] for size in args.ranks}
    print(f"{'ranks: towers, scale':<56}" + "".join(f"{size:>10}{'':>8}" for size in args.ranks))
    for name in OURS | OPEN_CLIP:
        cells = "".join(f"{towers:>10.1e}{scale:>8.0e}" for towers, scale in (found[size][name] for size in args.ranks))
        print(f"{name:<56}{cells}")
    if args.json:
        rows = [
            {"what": name, "ranks": size, "towers": towers, "scale": scale}
            for size, cases in found.items()
            for name, (towers, scale) in cases.items()
        ]
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
