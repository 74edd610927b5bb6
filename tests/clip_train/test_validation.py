"""Held-out samples: the same numbers on every number of ranks, each of which reads its share."""

import json
import math
import threading
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clip_data.stream import Source, build_manifest, read_once
from clip_eval.benchmarks.retrieval import RetrievalConfig
from clip_eval.features import ImageFeatures, TextFeatures
from clip_models import get_model_spec, get_tokenizer
from clip_models.model import build_model
from clip_train import heldout
from clip_train.captions import Captions
from clip_train.errors import ClipTrainError
from clip_train.heldout import COLUMNS, HeldOut, chunk_of
from clip_train.hooks import Validation
from clip_train.parallel import World, join_world
from clip_train.retrieval import ranks_of
from clip_train.runfolder import RunLog
from clip_train.tasks.coca import CoCaConfig
from clip_train.tasks.contrastive import ContrastiveConfig
from clip_train.tasks.distillation import DistillationConfig
from clip_train.tasks.siglip import SigLIPConfig
from clip_train.tasks.teacher import TeacherTask
from tests.clip_train.conftest import boxes
from tests.support.coca import TINY as COCA
from tests.support.datasets import make_dataset
from tests.support.distributed import run_ranks
from tests.support.threads import ranks

ALONE = World(0, 1, torch.device("cpu"))
SAMPLES, BATCH, CHUNK = 45, 12, 4
CORRUPT = (3, 17, 18, 20, 21, 22, 23, 40)  # the whole fifth chunk, and others
CONFIGS = {
    "contrastive": ContrastiveConfig(label_smoothing=0.1),
    "duplicates": ContrastiveConfig(positives="captions"),
    "siglip": SigLIPConfig(),
    "coca": CoCaConfig(),
    "distillation": DistillationConfig(teacher="x", temperature=2.0),
}
KINDS = tuple(CONFIGS)
MAKING = threading.Lock()  # of models, which draw from torch's only generator
CLIP = get_model_spec("ViT-Ti-4-24")


@dataclass(frozen=True)
class Letters:
    """A tokenizer for the small vocabulary of the tiny CoCa."""

    def __call__(self, captions):
        rows = [[1 + ord(letter) % 20 for letter in caption[:12]] + [23] for caption in captions]
        return np.array([row + [0] * (16 - len(row)) for row in rows], np.int64)


def make(kind: str, world: World = ALONE):
    """A task with random weights, and its tokenizer."""

    def model(spec, seed):
        torch.manual_seed(seed)
        return build_model(spec)

    options = {"precision": "fp32", "world": world}
    with MAKING:
        if kind == "distillation":
            teacher, tokenizer = model(replace(CLIP, embed_dim=24), 9), get_tokenizer("ViT-Ti-4-24")
            return TeacherTask(model(CLIP, 3), teacher, CONFIGS[kind], **options), Captions((tokenizer, tokenizer))
        spec = {"siglip": replace(CLIP, init_logit_bias=-4.0), "coca": COCA}.get(kind, CLIP)
        return CONFIGS[kind].build(model(spec, 0), **options), Letters() if kind == "coca" else None


@contextmanager
def shifted(model):
    """Other weights, as an average of them would be."""
    matrices = [parameter.detach() for parameter in model.parameters() if parameter.ndim > 1]
    kept = [matrix.clone() for matrix in matrices]
    for matrix in matrices:
        matrix.mul_(1.5)
    yield
    for matrix, values in zip(matrices, kept, strict=True):
        matrix.copy_(values)


def reader(root, task, tokenizer, world: World, size: int, **options):
    return read_once(
        build_manifest([Source(dataset=str(root))]),
        preprocess={**task.model.spec.preprocess.to_dict(), "size": list(task.image_size), "augment": None},
        tokenizer=tokenizer or Captions((get_tokenizer("ViT-Ti-4-24"),)),
        batch_size=size,
        columns=COLUMNS,
        rank=world.rank,
        world_size=world.size,
        **options,
    )


def measure(world: World, root, kinds=KINDS) -> dict:
    """What a rank finds for each task, and how many images it has decoded."""
    found = {}
    for kind in kinds:
        task, tokenizer = make(kind, world)
        out = HeldOut(
            task=task,
            world=world,
            weights={"val_loss": nullcontext, "val_loss_ema": partial(shifted, task.model)},
            samples=SAMPLES,
            batch_size=BATCH,
            chunk=CHUNK,
            retrieval=True,
        )
        part = reader(root, task, tokenizer, world, CHUNK)
        out.run(part.numbered())
        means, used = out.means(math.log)
        found[kind] = {**means, **out.ranks(), "used": used}
        found[f"{kind} read"] = int(part.stats["samples"] + part.stats["corrupt"])
    return found


def measure_in_process(root, kinds) -> dict:
    torch.set_num_threads(1)
    with join_world("cpu") as world:
        return measure(world, root, kinds)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    rows = boxes(SAMPLES, 7)
    for row in range(4, SAMPLES, 5):
        rows[row]["caption"] = "one of several boxes"
        rows[row]["url"] = f"http://boxes.test/{row}"
    for row in (10, 11):  # two captions of one image
        rows[row]["image"] = rows[9]["image"]
    rows[13]["caption"] = "  "
    rows[14]["caption"] = "One Of Several Boxes"  # the same tokens
    for row in CORRUPT:
        rows[row]["image"] = b"no image at all %d" % row
    folder = tmp_path_factory.mktemp("valid") / "data"
    make_dataset(folder, rows)
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def alone(root):
    return measure(ALONE, root)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_whole_batches_as_in_training(root, alone, kind):
    task, tokenizer = make(kind)
    losses, sizes = [], []
    for number, batch in reader(root, task, tokenizer, ALONE, BATCH).numbered():
        if number < SAMPLES // BATCH:
            losses.append(float(task.evaluate(task.prepare(batch))))
            sizes.append(len(batch["uid"]))
    assert sizes == [11, 6, 12]
    assert alone[kind]["val_loss"] == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert alone[kind]["val_loss_ema"] != pytest.approx(alone[kind]["val_loss"], rel=1e-4)
    assert alone[kind]["chance"] == pytest.approx(sum(map(math.log, sizes)) / 3)
    assert alone[kind]["used"] == 29


def check(found: list[dict], alone: dict, kinds) -> None:
    for kind in kinds:
        for rank in found:
            assert rank[kind] == alone[kind]
        each = [rank[f"{kind} read"] for rank in found]
        assert sum(each) == alone[f"{kind} read"] == SAMPLES
        assert max(each) <= CHUNK * math.ceil(math.ceil(SAMPLES / CHUNK) / len(found))


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 13])
def test_ranks_find_the_same_to_the_bit_and_read_their_share(root, alone, size, monkeypatch):
    own = threading.local()
    monkeypatch.setattr(heldout, "all_gather", lambda value: own.world.all_gather(value))
    kinds = KINDS if size < 4 else ("coca",)

    def run(world: World) -> dict:
        own.world = world
        return measure(world, root, kinds)

    check(ranks(size, run), alone, kinds)


@pytest.mark.slow
def test_processes_find_the_same(root, alone):
    check(run_ranks(2, measure_in_process, root, ("coca",)), alone, ("coca",))


@pytest.mark.parametrize("suffix", ["", "_ema"])
def test_retrieval_is_that_of_clip_eval(root, alone, suffix):
    """clip-eval measures the same features, which this test gives it."""
    task, _ = make("contrastive")
    images, texts, rows = [], {}, {"caption": [], "sha256": [], "uid": [], "key": []}
    by_tokens = {}
    for _, batch in reader(root, task, None, ALONE, CHUNK).numbered():
        if not batch["uid"]:
            continue
        with shifted(task.model) if suffix else nullcontext():
            out = task.held_out(task.prepare(batch))
        images.append(out.features["image"].numpy())
        for row, caption in enumerate(batch["caption"]):
            tokens = batch["text"][row].tobytes()
            texts[caption] = by_tokens.setdefault(tokens, out.features["text"][row].numpy())
        rows["caption"] += batch["caption"]
        rows["sha256"] += [value.hex() for value in batch["sha256"]]
        rows["uid"] += batch["uid"]
    rows["key"] = rows["uid"]
    features = ImageFeatures(features=np.concatenate(images), strings=rows, corrupt=0)
    embedder = SimpleNamespace(
        texts=lambda names, **_: TextFeatures(features=np.stack([texts[name] for name in names]), truncated=0)
    )
    outcome = RetrievalConfig(name="r", dataset="d").measure(features, embedder, None)
    wanted = {metric.metric: metric.value for metric in outcome.metrics}
    assert {f"{name}{suffix}": value for name, value in wanted.items()}.items() <= alone["contrastive"].items()
    assert outcome.counts["uncaptioned"] == 1
    assert outcome.counts["images"] < outcome.counts["rows"]


def test_ties_count_against_the_model_and_memory_is_that_of_a_tile(monkeypatch):
    image = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [1, 0], [0, 1], [1, 1]]), dim=1)
    text = image[[0, 0, 2]]
    pairs = np.array([[0, 1, 2, 3, 3], [0, 1, 2, 0, 2]])
    wanted = ([1, 1, 0, 1], [1, 1, 0])  # of image 3 both true captions are as good as the wrong one
    for tile in (1 << 22, 4):
        monkeypatch.setattr("clip_train.retrieval.TILE", tile)
        found = ranks_of(image, text, pairs, ALONE)
        assert [side.tolist() for side in found] == list(wanted)


def test_large_sets_are_ranked_in_tiles():
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(2500, 8, generator=generator), dim=1) for _ in range(2))
    text = torch.nn.functional.normalize(image + 0.3 * text, dim=1)
    pairs = np.stack([np.arange(2500)] * 2)
    from clip_eval.metrics import rank_candidates

    found = ranks_of(image, text, pairs, ALONE)
    assert found[0].tolist() == rank_candidates(image.numpy(), text.numpy(), (pairs[0], pairs[1])).rank.tolist()
    assert found[1].tolist() == rank_candidates(text.numpy(), image.numpy(), (pairs[1], pairs[0])).rank.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_the_chance_level_is_the_loss_of_a_model_that_cannot_tell_samples_apart(kind):
    task, _ = make(kind)
    config = CONFIGS[kind]
    count, width = 32, task.model.spec.embed_dim
    same = torch.nn.functional.normalize(torch.ones(count, width), dim=1)
    shared = {"scale": torch.tensor(10.0)}
    if kind == "siglip":  # the best constant: one of N pairs is a positive
        shared["bias"] = torch.tensor(-10.0 - math.log(count - 1))
    teacher = torch.nn.functional.normalize(torch.randn(2, count, 24), dim=2)
    batch = {"group": torch.arange(count) // 3, "teacher_image": teacher[0], "teacher_text": teacher[1]}
    batch = {name: value for name, value in batch.items() if name != "group" or kind == "duplicates"}
    losses = task.losses_of({"image": same, "text": same}, shared, batch, ranks=1)
    wanted = float(sum(losses.values())) + (2 * math.log(24) if kind == "coca" else 0)
    assert config.chance(task.model.spec, count) == pytest.approx(wanted, rel=1e-5)
    assert replace(config, loss="tests.x:y").chance(task.model.spec, count) is None


@pytest.mark.parametrize(
    ("batch", "most", "chunk"),
    [(256, 256, 128), (256, 32, 32), (96, 96, 96), (257, 257, 257), (8, 2, 2), (300, 300, 100)],
)
def test_chunks_divide_the_batch_whatever_the_ranks(batch, most, chunk):
    assert chunk_of(batch, most) == chunk


def hook(root, log, **options) -> Validation:
    task, tokenizer = make("contrastive")
    defaults = {
        "batches": reader(root, task, tokenizer, ALONE, CHUNK, workers=options.pop("workers", 0), keep_workers=True),
        "batch_size": BATCH,
        "chunk": CHUNK,
        "samples": SAMPLES,
        "max_corrupt": 0.5,
        "retrieval": True,
        "chance": math.log,
        "every": 1,
        "stream": None,
        "world": ALONE,
        "log": log,
    }
    made = Validation(**{**defaults, **options})
    return made, SimpleNamespace(task=task, steps=9, metrics={})


def test_the_log_has_the_losses_the_chance_the_ranks_and_the_counts(root, alone, tmp_path):
    with RunLog(tmp_path, 0) as log:
        made, loop = hook(root, log)
        made.on_step(loop, SimpleNamespace(step=1))
    (row,) = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {name: row.pop(name) for name in [*row] if name in alone["contrastive"]}.keys() == {
        name for name in alone["contrastive"] if name != "used" and not name.endswith("_ema")
    }
    assert row == {
        "step": 1,
        "event": "validation",
        "batch_size": BATCH,
        "samples": 29,
        "left_out": SAMPLES - len(CORRUPT) - 29,
        "corrupt": len(CORRUPT),
        "truncated": 0,
    }
    assert loop.metrics == {"val_loss": pytest.approx(alone["contrastive"]["val_loss"])}


def test_too_many_corrupt_held_out_samples_end_the_run_and_name_the_key(root):
    made, loop = hook(root, None, max_corrupt=0.1)
    with pytest.raises(
        ClipTrainError, match=r"^8 of the 45 held-out samples .* val\.max_corrupt = 0\.1\), among them "
    ):
        made.on_step(loop, SimpleNamespace(step=1))
    made, loop = hook(root, None, batch_size=48)
    with pytest.raises(ClipTrainError, match=r"only 37 samples of val\.sources can be read"):
        made.on_step(loop, SimpleNamespace(step=1))
