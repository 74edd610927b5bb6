"""A run that learns from a teacher in a file: the stream serves both tokenizers, and the run goes on after a stop."""

import json
from dataclasses import replace

import pytest
import torch

from clip_models import get_model_spec, save_model
from clip_models.model import build_model
from clip_train import CheckpointConfig, DataConfig, FitConfig, ModelConfig, OptimConfig, Source, TrainConfig, fit
from clip_train.config import resolve
from clip_train.errors import ClipTrainError
from clip_train.tasks.distillation import DistillationConfig


@pytest.mark.slow
def test_a_run_learns_from_a_teacher_with_other_images_and_captions(tmp_path, datasets):
    student = get_model_spec("ViT-Ti-4-24")
    sizes = {"vision": replace(student.vision, image_size=32), "text": replace(student.text, context_length=40)}
    spec = replace(student, preprocess=replace(student.preprocess, size=(32, 32)), **sizes)
    torch.manual_seed(5)
    save_model(tmp_path / "teacher.safetensors", build_model(spec), spec)

    def config(run: str, every: int) -> FitConfig:
        return FitConfig(
            run=str(tmp_path / run),
            model=ModelConfig(name="ViT-Ti-4-24"),
            task=DistillationConfig(teacher=str(tmp_path / "teacher.safetensors"), distillation_weight=2.0),
            data=DataConfig(sources=(Source(dataset=str(datasets / "train")),), workers=1),
            optim=OptimConfig(lr=1e-3),
            train=TrainConfig(steps=4, batch_size=8, micro_batches=2, precision="fp32", threads=1, log_every=1),
            checkpoint=CheckpointConfig(every=every),
        )

    result = fit(config("whole", 100))
    log = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    rows = [row for row in log if "event" not in row]
    assert all(row["loss"] == pytest.approx(row["contrastive_loss"] + row["distillation_loss"]) for row in rows)
    assert rows[-1]["distillation_loss"] < rows[0]["distillation_loss"]
    stored = json.loads((tmp_path / "whole/config.json").read_text())["task"]
    assert (stored["kind"], stored["teacher"]) == ("distillation", str(tmp_path / "teacher.safetensors"))
    again = fit(config("again", 1))
    assert again.model_sha256 == result.model_sha256


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (DistillationConfig(), r"task\.teacher is empty"),
        (
            DistillationConfig(teacher="ViT-B-32"),
            r"'ViT-B-32' is an architecture: name its weights in task\.teacher_pre",
        ),
        (DistillationConfig(teacher="x", temperature=0.0), r"task\.temperature = 0\.0 must be above 0"),
        (
            DistillationConfig(teacher="x", distillation_weight=-1.0),
            r"task\.distillation_weight = -1\.0 must be at least",
        ),
        (DistillationConfig(teacher="x", matryoshka=(8, 8)), r"task\.matryoshka = \[8, 8\] must be distinct"),
        (DistillationConfig(teacher="x", label_smoothing=2.0), r"task\.label_smoothing = 2\.0 must be in \[0, 1\]"),
    ],
)
def test_values_are_checked_before_anything_is_loaded(task, message):
    data, train = DataConfig(sources=(Source(dataset="d"),)), TrainConfig(steps=1)
    with pytest.raises(ClipTrainError, match=message):
        resolve(FitConfig(run="run", model=ModelConfig(name="ViT-Ti-4-24"), task=task, data=data, train=train))
