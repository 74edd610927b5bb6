"""A teacher's embeddings on disk: joined by uid, mapped into memory, with the gradient of the live teacher."""

import json
import shutil

import numpy as np
import pytest
import torch

from clip_data.dataset import Dataset
from clip_data.stream import Source, build_manifest, read_once
from clip_models import create_model, embed, get_tokenizer
from clip_models.inference.embedding.parts import read_embeddings
from clip_train.errors import ClipTrainError
from clip_train.gradients import Gradients
from clip_train.tasks.distillation import DistillationConfig
from clip_train.tasks.stored import StoredEmbeddings
from clip_train.tasks.teacher import TeacherTask
from tests.support.datasets import make_dataset, make_image
from tests.support.steps import FP32, HERE

NAME = "ViT-Ti-4-24"
SAMPLES = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dataset `data` in three units, and the embeddings `float32` and `float16` of a teacher."""
    root = tmp_path_factory.mktemp("stored")
    samples = [{"image": make_image(number, (24, 24)), "caption": f"number {number}"} for number in range(SAMPLES)]
    make_dataset(root / "data", samples, rows_per_unit=5)
    teacher = create_model(NAME, seed=5)
    for dtype in ("float32", "float16"):
        source, options = root / "data/shards/*.tar", {"what": "both", "format": "npy", "part_rows": 4, "dtype": dtype}
        embed(str(source), root / dtype, model=teacher, workers=1, **options)
    return root


def manifest_of(folder):
    return build_manifest([Source(dataset=str(folder / "data"))])


def gradient(task, batch, parts: int = 1) -> np.ndarray:
    Gradients(task, HERE, FP32, micro_batches=parts).backward(task.prepare(batch), 0)
    return torch.cat([p.grad.flatten() for p in task.model.parameters()]).numpy()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 2e-3)])
def test_the_gradient_is_that_of_the_live_teacher(folder, dtype, tolerance):
    manifest, tokenizer = manifest_of(folder), get_tokenizer(NAME).encode_numpy
    config = DistillationConfig(teacher_embeddings=str(folder / dtype), contrastive_weight=0.5)
    config.check(create_model(NAME).spec)
    stored = config.build(create_model(NAME, seed=0), precision="fp32", world=HERE)
    stored.start(manifest, None, batch_size=SAMPLES)
    live_config = DistillationConfig(teacher="x", contrastive_weight=0.5)
    teacher, calls = create_model(NAME, seed=5), []
    teacher.visual.register_forward_hook(lambda *_: calls.append(1))
    live = TeacherTask(create_model(NAME, seed=0), teacher, live_config, precision="fp32", world=HERE)

    preprocess = {**stored.model.spec.preprocess.to_dict(), "augment": None}
    (batch,) = read_once(manifest, preprocess=preprocess, tokenizer=tokenizer, batch_size=SAMPLES)
    order = np.random.default_rng(0).permutation(SAMPLES)
    batch = {"image": batch["image"][order], "text": batch["text"][order], "uid": [batch["uid"][i] for i in order]}
    wanted = gradient(live, {**batch, "text": np.concatenate([batch["text"]] * 2, axis=1)}, parts=3)
    assert len(calls) == 3  # the second pass has not run the teacher again
    found = gradient(stored, batch)
    assert np.linalg.norm(found - wanted) < tolerance * np.linalg.norm(wanted)
    assert stored.teacher_scale.item() == pytest.approx(1 / 0.07, rel=1e-5)


def by_uid(folder, target, drop: int = 0):
    """The embeddings of float32 with uids as keys, in another order of the rows of each part, without the last ones."""
    shutil.copytree(folder / "float32", target)
    dataset = Dataset.open(str(folder / "data"))
    uids = {}
    for unit in dataset.units:
        table = dataset.sidecar(unit, ["key", "uid"])
        uids |= dict(zip(table["key"].to_pylist(), table["uid"].to_pylist(), strict=True))
    for path in sorted(target.glob("keys-*.json"))[::-1]:
        keys = [uids[key].hex() for key in json.loads(path.read_text())][::-1]
        number = path.stem.removeprefix("keys-")
        for side in ("image", "text"):
            array = target / f"{side}-{number}.npy"
            np.save(array, np.load(array)[::-1][: len(keys) - drop])
        path.write_text(json.dumps(keys[: len(keys) - drop]))
        drop = 0
    return target


def test_uids_and_keys_of_a_dataset_find_the_same_embeddings(folder, tmp_path):
    manifest = manifest_of(folder)
    keys, images = read_embeddings(folder / "float32", "image")
    texts = read_embeddings(folder / "float32", "text")[1]
    for path in (folder / "float32", by_uid(folder, tmp_path / "uids")):
        stored = StoredEmbeddings(str(path))
        assert all(isinstance(array, np.memmap) for pair in stored._parts for array in pair)
        stored.join([manifest])
        batches = list(read_once(manifest, preprocess={"size": [24, 24]}, tokenizer=None, columns=("key",)))
        places = [keys.index(key) for batch in batches for key in batch["key"]]
        found = stored.find([uid for batch in batches for uid in batch["uid"]])
        assert np.array_equal(found[0], images[places])
        assert np.array_equal(found[1], texts[places])


def test_samples_without_an_embedding_are_counted_and_named(folder, tmp_path):
    stored = StoredEmbeddings(str(by_uid(folder, tmp_path / "uids", drop=2)))
    with pytest.raises(ClipTrainError, match=r"2 of the 12 samples of the run have no embedding .* \(uid [0-9a-f]{32}"):
        stored.join([manifest_of(folder)])


def changed(folder, target, **changes):
    shutil.copytree(folder / "float32", target)
    manifest = json.loads((target / "manifest.json").read_text())
    config = {**manifest["config"], **changes.pop("config", {})}
    (target / "manifest.json").write_text(json.dumps({**manifest, "config": config, **changes}))
    return str(target)


def test_other_folders_are_refused(folder, tmp_path):
    cases = [
        (str(tmp_path), "holds no embeddings: it has no manifest.json"),
        (changed(folder, tmp_path / "a", complete=False), "is not finished: run its embed command again"),
        (changed(folder, tmp_path / "b", config={"what": "image"}), "embed with --what both"),
        (changed(folder, tmp_path / "c", config={"format": "parquet"}), "embed with --format npy"),
    ]
    (tmp_path / "c" / "keys-000000.json").write_text('["a.jpg", "b", "c", "d"]')
    manifest = json.loads((tmp_path / "c/manifest.json").read_text())
    manifest["config"]["format"] = "npy"
    shutil.copytree(tmp_path / "c", tmp_path / "d")
    (tmp_path / "d/manifest.json").write_text(json.dumps(manifest))
    cases.append((str(tmp_path / "d"), r"the key 'a\.jpg', which is neither a uid"))
    for path, message in cases:
        with pytest.raises(ClipTrainError, match=message):
            StoredEmbeddings(path)


def test_keys_of_one_dataset_do_not_serve_two(folder, tmp_path):
    shutil.copytree(folder / "data", tmp_path / "data")
    both = build_manifest([Source(dataset=str(folder / "data")), Source(dataset=str(tmp_path / "data"))])
    with pytest.raises(ClipTrainError, match="keyed by the samples of one dataset, but the run has 2"):
        StoredEmbeddings(str(folder / "float32")).join([both])


@pytest.mark.parametrize("other", [{"teacher": "ViT-B-32"}, {"teacher_pretrained": "openai"}])
def test_embeddings_and_a_live_teacher_exclude_each_other(other):
    with pytest.raises(ClipTrainError, match="takes the place of"):
        DistillationConfig(teacher_embeddings="x", **other).check(create_model(NAME).spec)
