"""The price of bits that can be repeated: the step of a recipe's model with `train.deterministic` off and strict.

    uv run tests/benchmarks/deterministic.py [--model ViT-B-32] [--batch 32] [--steps 10] [--device cpu] [--json FILE]

Both run in turns in one process, on synthetic samples; `price` is the median of the ratios of neighbours, less one.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from clip_train import ModelConfig, TrainConfig
from clip_train.arithmetic import arithmetic
from clip_train.gradients import Gradients
from clip_train.model import make_model
from clip_train.optim.build import Optimization
from clip_train.optim.config import OptimConfig
from clip_train.optim.guard import update
from clip_train.parallel import join_world
from clip_train.tasks.contrastive import ContrastiveConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    times: dict[str, list[float]] = {"off": [], "strict": []}
    with join_world(options.device) as world:
        model = make_model(ModelConfig(name=options.model), seed=0)
        precision = "bf16" if world.device.type == "cuda" else "fp32"
        task = ContrastiveConfig().build(model, precision=precision, world=world)
        gradients, optim = Gradients(task, world), Optimization(model, OptimConfig(), world.device)
        spec = model.spec
        batch = {
            "image": torch.randint(0, 256, (options.batch, 3, *task.image_size), dtype=torch.uint8).numpy(),
            "text": torch.randint(1, 1000, (options.batch, spec.text.context_length)).numpy(),
            "uid": [f"{number:032x}" for number in range(options.batch)],
        }
        batch["text"][:, -1] = spec.text.vocab_size - 1
        prepared = task.prepare(batch)
        for number in range(options.steps + 2):
            for mode, found in times.items():
                with arithmetic(TrainConfig(deterministic=mode, precision=precision), world):
                    began = time.perf_counter()
                    losses = gradients.backward(prepared, number)
                    norms = optim.clip.norms()
                    update(optim.optimizer, optim.guard.judge(losses["loss"], norms["grad_norm"]))
                    optim.optimizer.zero_grad(set_to_none=True)
                    if world.device.type == "cuda":
                        torch.cuda.synchronize()
                    if number >= 2:
                        found.append(time.perf_counter() - began)
    ratios = [strict / off for off, strict in zip(times["off"], times["strict"], strict=True)]
    row = {
        "model": options.model,
        "device": str(world.device),
        **{f"{mode}_s": round(statistics.median(found), 4) for mode, found in times.items()},
        "price": round(statistics.median(ratios) - 1, 4),
    }
    print(json.dumps(row))
    if options.json:
        options.json.write_text(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
