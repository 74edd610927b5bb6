"""Time of a training step beside OpenCLIP's: its `train_one_epoch` and our loop, on the same weights and samples.

    uv run tests/benchmarks/step_vs_openclip.py [--batch 32 64] [--precision fp32 bf16] [--longest 77 20] [--json FILE]

A step is what each side does with a batch that is at hand: forward, loss, backward, optimizer, clamp of the scale. Ours
also normalises the uint8 images, and measures the norm of the gradient. The sides run by turns, one step each; a turn
that the machine disturbs changes a median little. `ratio` is the median over the turns of our time by OpenCLIP's,
`cpu` the same of the processor time of all threads, which other processes disturb less. Captions are `mixed`: lengths
uniform from 5 to `--longest` tokens, which one of them has; or `full`: all of that length.
"""

import argparse
import copy
import json
import logging
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.loss import ClipLoss
from open_clip_train.train import train_one_epoch

import clip_models
from clip_train.config import TrainConfig
from clip_train.feed import Feed
from clip_train.gradients import Gradients
from clip_train.loop import Loop
from clip_train.matmul import computed_precision, multiplier
from clip_train.optim.build import Optimization
from clip_train.optim.config import OptimConfig
from clip_train.parallel import World
from clip_train.tasks.contrastive import ContrastiveConfig

LR, DECAY, BETAS, EPS = 5e-4, 0.2, (0.9, 0.98), 1e-6  # OpenCLIP's defaults for a ViT
LINE = "{what:<28}{their_min:>16.3f}{theirs:>8.3f}{our_min:>13.3f}{ours:>8.3f}{ratio:>8.2f}{cpu:>7.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--longest", type=int, nargs="+", default=[77, 20], help="tokens of the longest caption")
    parser.add_argument("--captions", nargs="+", choices=["full", "mixed"], default=["full", "mixed"])
    parser.add_argument("--matmul", choices=["auto", "torch", "onednn"], default="auto", help="train.matmul of ours")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # OpenCLIP warns that random weights are random
    torch.set_num_threads(args.threads)
    print(f"{args.model}, {args.threads} threads, torch {torch.__version__}, {args.rounds} rounds")
    print(f"{'':<28}{'OpenCLIP s: min':>16}{'median':>8}{'ours s: min':>13}{'median':>8}{'ratio':>8}{'cpu':>7}")
    rows = []
    model = clip_models.create_model(args.model)
    for precision, batch, longest, captions in product(args.precision, args.batch, args.longest, args.captions):
        how = TrainConfig(precision=precision, matmul=args.matmul)
        images, texts = samples(model, batch, longest, full=captions == "full")
        sides = [their_step(model, images, texts, precision), our_step(model, images, texts, how)]
        rows.append({"what": f"{precision}, {batch} x {longest} {captions}", **by_turns(sides, args.rounds)})
        print(LINE.format(**rows[-1]), flush=True)
    if args.json:
        settings = {"model": args.model, "threads": args.threads, "rounds": args.rounds, "torch": torch.__version__}
        args.json.write_text(json.dumps({**settings, "rows": rows}, indent=1))


def samples(model: Any, count: int, longest: int, *, full: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns images, uint8 [count, 3, height, width], and captions, int64 [count, context]."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 3, *model.spec.preprocess.size), dtype=np.uint8)
    texts = np.zeros((count, model.context_length), np.int64)
    for row in range(count):
        length = longest if full or row == 0 else int(rng.integers(5, longest + 1))
        texts[row, :length] = rng.integers(1, 49405, length)
        texts[row, 0], texts[row, length - 1] = 49406, 49407
    return images, texts


def their_step(weights: Any, images: np.ndarray, texts: np.ndarray, precision: str) -> Callable[[], Any]:
    """OpenCLIP's epoch of one batch, with the optimizer that its main builds."""
    model = open_clip.create_model(weights.spec.name, output_dict=True)
    model.load_state_dict(weights.state_dict())
    named = list(model.named_parameters())
    bare = [p for name, p in named if p.ndim < 2 or "bn" in name or "ln" in name or "bias" in name or "logit" in name]
    rest = [p for _, p in named if all(p is not other for other in bare)]
    groups = [{"params": bare, "weight_decay": 0.0}, {"params": rest, "weight_decay": DECAY}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS)
    size = weights.spec.preprocess
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (size.mean, size.std))

    class Loader(list):
        num_batches, num_samples = 1, len(images)

    batches = Loader([((torch.from_numpy(images) / 255 - mean) / std, torch.from_numpy(texts))])
    data = {"train": Namespace(dataloader=batches, set_epoch=lambda epoch: None)}
    args = Namespace(
        device="cpu",
        precision="amp_bf16" if precision == "bf16" else "fp32",
        distill=False,
        accum_freq=1,
        skip_scheduler=True,
        grad_clip_norm=None,
        horovod=False,
        rank=0,
        local_rank=0,
        log_local=False,
        log_every_n_steps=100,
        batch_size=len(images),
        world_size=1,
        wandb=False,
    )
    return lambda: train_one_epoch(model, data, ClipLoss(), 0, optimizer, None, None, None, args)


class AtHand:
    """A stream whose next batch is always there."""

    def __init__(self, images: np.ndarray, texts: np.ndarray) -> None:
        self.stats: dict[str, int] = {}
        self._batch = {"image": images, "text": texts}

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        while True:
            yield self._batch

    def state_dict(self) -> dict[str, Any]:
        return {}


def our_step(weights: Any, images: np.ndarray, texts: np.ndarray, how: TrainConfig) -> Callable[[], Any]:
    """A run of one step, of parts that are built as the trainer builds them."""
    world = World(0, 1, torch.device("cpu"))
    how = replace(how, precision=computed_precision(how.precision, world))
    task = ContrastiveConfig().build(copy.deepcopy(weights), precision=how.precision, world=world)
    optim = Optimization(task.model, OptimConfig(lr=LR, weight_decay=DECAY, betas=BETAS, eps=EPS), world.device)
    gradients = Gradients(task, world, how)
    gradients.multiplier = multiplier(how, task.model, world, {})
    feed = Feed(AtHand(images, texts), task, world)

    def run() -> None:
        Loop(
            task=task,
            gradients=gradients,
            optimizer=optim.optimizer,
            feed=feed,
            rate=lambda step: LR,
            steps=1,
            clip=optim.clip,
            guard=optim.guard,
        ).run()

    return run


def by_turns(sides: list[Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Returns seconds and ratios; the sides run by turns in changing order, after a step that does not count."""
    wall: list[list[float]] = [[], []]
    cpu: list[list[float]] = [[], []]
    for turn in range(rounds + 1):
        for side in (0, 1) if turn % 2 else (1, 0):
            start, own = time.perf_counter(), time.process_time()
            sides[side]()
            wall[side].append(time.perf_counter() - start)
            cpu[side].append(time.process_time() - own)
    theirs, ours, their_cpu, our_cpu = (times[1:] for times in (*wall, *cpu))
    return {
        "their_min": min(theirs),
        "theirs": statistics.median(theirs),
        "our_min": min(ours),
        "ours": statistics.median(ours),
        "ratio": statistics.median(b / a for a, b in zip(theirs, ours, strict=True)),
        "cpu": statistics.median(b / a for a, b in zip(their_cpu, our_cpu, strict=True)),
    }


if __name__ == "__main__":
    main()
