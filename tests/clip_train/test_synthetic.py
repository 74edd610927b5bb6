"""Samples without a dataset: deterministic, whatever the ranks and restarts."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from clip_models.specs import get_model_spec
from clip_train import (
    ClipTrainError,
    ContrastiveConfig,
    DataConfig,
    FitConfig,
    ModelConfig,
    OptimConfig,
    Source,
    TrainConfig,
    fit,
)
from clip_train.config import resolve
from clip_train.synthetic import SyntheticConfig, SyntheticStream
from clip_train.trainer import train

SPEC = get_model_spec("ViT-Ti-4-24")


def stream(samples: int = 20, tokens: int = 0, batch: int = 8, name: str = "ViT-Ti-4-24", **options) -> SyntheticStream:
    spec = get_model_spec(name)
    config = SyntheticConfig(samples=samples, tokens=tokens)
    return SyntheticStream(config, image_size=(24, 16), text_specs=[spec], global_batch_size=batch, **options)


def same(left: dict, right: dict) -> bool:
    arrays = all(np.array_equal(left[name], right[name]) for name in ("image", "text"))
    return arrays and left["uid"] == right["uid"]


def test_batches_have_the_shapes_of_the_model():
    batch = next(stream(tokens=5))
    assert batch["image"].shape == (8, 3, 24, 16)
    assert batch["image"].dtype == np.uint8
    assert batch["image"].std() > 60  # noise over all values
    assert batch["text"].shape == (8, SPEC.text.context_length)
    assert batch["text"].dtype == np.int64
    assert (batch["text"][:, 5:] == SPEC.text.pad_id).all()
    assert len({image.tobytes() for image in batch["image"]}) == 8
    assert len({text.tobytes() for text in batch["text"]}) == 8
    assert all(len(bytes.fromhex(uid)) == 16 for uid in batch["uid"])


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-SigLIP", "roberta-ViT-B-32", "coca_ViT-B-32"])
def test_captions_are_valid_for_the_text_tower(name):
    spec = get_model_spec(name)
    text = next(stream(tokens=7, name=name))["text"]
    assert 0 <= text.min() <= text.max() < spec.text.vocab_size
    pad = spec.text.pad_id or 0
    assert ((text != pad).sum(1) == 7).all()
    if getattr(spec.text, "pool_type", "") == "argmax":
        assert (text.argmax(1) == 6).all()  # the pooled token is the end


def test_an_epoch_has_every_sample_once_in_an_order_of_its_own():
    batches = stream(samples=20, batch=4)
    epochs = [[uid for _ in range(5) for uid in next(batches)["uid"]] for _ in range(3)]
    assert len(set(epochs[0])) == 20
    assert {frozenset(epoch) for epoch in epochs} == {frozenset(epochs[0])}
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert next(stream(samples=20, batch=4, seed=1))["uid"] != epochs[0][:4]


def test_the_order_does_not_depend_on_ranks_and_restarts():
    whole = stream()
    ranks = [stream(rank=rank, world_size=2) for rank in range(2)]
    for _ in range(4):  # over the end of an epoch, within a batch
        expected, parts = next(whole), [next(part) for part in ranks]
        assert same(
            expected,
            {name: np.concatenate([part[name] for part in parts]) for name in ("image", "text")}
            | {"uid": parts[0]["uid"] + parts[1]["uid"]},
        )
    resumed = stream()
    resumed.load_state_dict(ranks[0].state_dict())
    assert same(next(resumed), next(whole))
    with pytest.raises(ClipTrainError, match="seed = 0, this stream has 1"):
        stream(seed=1).load_state_dict(whole.state_dict())


@pytest.fixture
def recipe(tmp_path) -> FitConfig:
    return FitConfig(
        run=str(tmp_path / "run"),
        model=ModelConfig(name="ViT-Ti-4-24"),
        data=DataConfig(synthetic=SyntheticConfig(samples=24, tokens=8)),
        optim=OptimConfig(lr=1e-3),
        train=TrainConfig(epochs=1, batch_size=8, precision="fp32", threads=1, device="cpu"),
    )


@pytest.mark.slow
def test_a_run_without_data_trains_and_resumes(recipe, tmp_path, monkeypatch):
    result = fit(recipe)
    assert result.steps == 3
    again = dataclasses.replace(
        recipe,
        run=str(tmp_path / "again"),
        checkpoint=dataclasses.replace(recipe.checkpoint, every=1),
    )
    from clip_train.runfolder import RunFolder

    folder = RunFolder(resolve(again))
    monkeypatch.setattr("clip_train.loop.Loop.run", _stopping(after=2))
    with pytest.raises(KeyboardInterrupt):
        train(again, folder)
    monkeypatch.undo()
    assert fit(again).loss == result.loss


def _stopping(after: int):
    from clip_train.loop import Hook, Loop

    run = Loop.run

    def stopping(self: Loop) -> None:
        class Stop(Hook):
            def exact(self, loop, step):
                return True

            def on_step(self, loop, step):
                if step.step == after:
                    raise KeyboardInterrupt

        self.hooks = [*self.hooks, Stop()]
        run(self)

    return stopping


def test_wrong_values_are_refused(recipe):
    def refused(**synthetic) -> str:
        data = dataclasses.replace(recipe.data, synthetic=SyntheticConfig(**synthetic))
        with pytest.raises(ClipTrainError) as error:
            resolve(dataclasses.replace(recipe, data=data))
        return str(error.value)

    assert "samples = -1 must be at least 0" in refused(samples=-1)
    assert "tokens = 33 must be 0, or from 3 to the context 32" in refused(samples=8, tokens=33)
    assert "tokens = 8 requires data.synthetic.samples" in refused(tokens=8)
    assert "data.sources is empty" in refused()
    both = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, sources=(Source(dataset="here"),)))
    with pytest.raises(ClipTrainError, match=r"data\.sources cannot be read: omit one"):
        resolve(both)


def test_a_task_that_reads_a_column_is_refused(recipe):
    with pytest.raises(ClipTrainError, match=r"the column 'cluster', which data\.synthetic does not have"):
        fit(dataclasses.replace(recipe, task=ContrastiveConfig(positives="cluster")))
    assert not Path(recipe.run).exists()
