"""Tokens per second of CoCa's generation beside OpenCLIP's: the same random weights, the same images, one process,
rounds by turns.

    uv run tests/benchmarks/coca_generate_vs_openclip.py [--length 64] [--images 1 8] [--device cuda] [--dtype bfloat16]

The end token is forbidden, so that every caption has the full length; the time includes the image tower. OpenCLIP's
`generate` needs a class that transformers 5 no longer has; a stand-in without measurable cost takes its place.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
KINDS = {
    "greedy": {"generation_type": "top_k", "top_k": 1},
    "top-p": {"generation_type": "top_p", "top_p": 0.9},
    "beams 6 / 3": {"generation_type": "beam_search", "num_beams": 6, "num_beam_groups": 3},
    "beams 6 / 1": {"generation_type": "beam_search", "num_beams": 6, "num_beam_groups": 1},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="coca_ViT-B-32")
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--images", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["greedy", "top-p", "beams 6 / 3"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args = parser.parse_args()

    import open_clip
    import torch
    from open_clip import coca_model

    from clip_models import get_model_spec
    from clip_models.model.coca import CoCa
    from tests.support.beam_scorer import lend_generation

    lend_generation(coca_model)
    if args.threads:
        torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    torch.manual_seed(0)
    ours = CoCa(get_model_spec(args.model)).eval()
    config = {key: value for key, value in open_clip.get_model_config(args.model).items() if key != "custom_text"}
    theirs = open_clip.CoCa(**config).eval()
    theirs.load_state_dict(ours.state_dict())
    models = [model.to(args.device, dtype) for model in (theirs, ours)]
    print(f"{args.model}, {args.length} tokens, {args.device}, {args.dtype}, {torch.get_num_threads()} threads")
    print(f"{'kind':<14}{'images':>8}{'OpenCLIP tokens/s':>20}{'clip-models tokens/s':>22}{'ratio':>8}{'same':>7}")
    rows = []
    for kind in args.kinds:
        for count in args.images:
            image = torch.randn(count, 3, *ours.spec.preprocess.size, device=args.device, dtype=dtype)
            calls = [caller(model, image, KINDS[kind], args.length) for model in models]
            captions = [call() for call in calls]  # the first run of each is not measured
            seconds: list[list[float]] = [[], []]
            for _ in range(args.rounds):
                for call, times in zip(calls, seconds, strict=True):
                    times.append(timed(call, args.device))
            speeds = [count * (args.length - 1) / statistics.median(times) for times in seconds]
            same = captions[0].tolist() == captions[1].tolist()
            rows.append({"kind": kind, "images": count, "open_clip": speeds[0], "clip_models": speeds[1], "same": same})
            print(
                f"{kind:<14}{count:>8}{speeds[0]:>20.1f}{speeds[1]:>22.1f}{speeds[1] / speeds[0]:>8.1f}{same!s:>7}",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps({**vars(args), "json": None, "rows": rows}, indent=1))


def caller(model, image, options: dict, length: int) -> Callable:
    import torch

    def call():
        torch.manual_seed(0)
        return model.generate(image, seq_len=length, min_seq_len=length - 1, **options)

    return call


def timed(call: Callable, device: str) -> float:
    import torch

    start = time.perf_counter()
    call()
    if device != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
