"""Adds CLIP similarities of images and captions to a dataset, as the column clip_similarity.

uv run pipelines/score_clip.py --dataset runs/mine --model ViT-B-32 --pretrained laion2b_s34b_b79k
uv run pipelines/filter_shards.py --dataset runs/mine --name similar --where "clip_similarity >= 0.28"
"""

import sys
from dataclasses import dataclass, field

from clip_core.cli import parse, run_cli
from clip_data.executors import ExecutorConfig


@dataclass(frozen=True, kw_only=True)
class ScoreClip:
    dataset: str
    """the dataset folder: a path or an fsspec URL"""
    model: str
    """name of an architecture, hf-hub:org/repo, local-dir:folder, or a file that describes itself"""
    pretrained: str = ""
    """tag or file of the weights"""
    name: str = "clip"
    """of the columns; another one for each model, to keep several"""
    precision: str = "fp32"
    """precision of the model"""
    batch_size: int = 64
    """samples in a forward pass"""
    device: str = "auto"
    """cpu, cuda, …; auto takes an accelerator if one is available"""
    quick_gelu: bool = False
    """the weights were trained with QuickGELU"""
    embeddings: bool = False
    """add the columns image_embedding and text_embedding"""
    executor: ExecutorConfig = field(default_factory=lambda: ExecutorConfig(workers=1))
    """where the work runs; every worker has a model of its own"""


def main() -> None:
    config = parse(ScoreClip, sys.argv[1:], prog="score_clip.py", description=__doc__)
    from clip_data.dataset import Dataset
    from clip_data.executors import make_executor
    from clip_data.score import ScoreStage
    from clip_data.stage import run_stage
    from clip_models import ClipScorer

    dataset = Dataset.open(config.dataset)
    options = {key: value for key, value in vars(config).items() if key not in ("dataset", "executor")}
    with make_executor(config.executor) as executor:
        run_stage(dataset, ScoreStage(dataset.url, ClipScorer(**options)), executor)
    print(f"scores of {len(dataset.units):,} shards are the columns {config.name} of {config.dataset}")


if __name__ == "__main__":
    run_cli(main)
