"""Fine-tuning on labels: class prompts as captions (FLYP), and a linear classifier (LP-FT)."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from clip_core import ClipError
from clip_data.stream import SampleStream, Source, build_manifest
from clip_models import create_model, get_tokenizer, save_model
from clip_train import cli
from clip_train.errors import ClipTrainError
from clip_train.gradients import Gradients
from clip_train.parallel import World
from clip_train.tasks.classification import ClassificationConfig
from clip_train.tasks.flyp import FLYPConfig
from clip_train.tasks.labels import LabelsConfig
from tests.support.datasets import make_dataset
from tests.support.evals import make_image

NAME = "ViT-Ti-4-24"
COLORS = ("blue", "green", "red")
LABELS = LabelsConfig(column="color", templates=("a {} thing.", "something {}.", "{}!"))
HERE = World(0, 1, torch.device("cpu"))
PREPROCESS = {
    "size": [24, 24],
    "mean": [0, 0, 0],
    "std": [1, 1, 1],
    "interpolation": "bicubic",
    "resize_mode": "squash",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("labelled") / "data"
    samples = [
        {"image": make_image(COLORS[i % 3], i), "caption": f"number {i}", "color": COLORS[i % 3]} for i in range(24)
    ]
    make_dataset(folder, samples)
    return folder


def manifest_of(*folders):
    return build_manifest([Source(dataset=str(folder)) for folder in folders])


def build(config, data, model=None):
    config.check((model or create_model(NAME, seed=3)).spec)
    task = config.build(model or create_model(NAME, seed=3), precision="fp32", world=HERE)
    task.start(manifest_of(data), None, batch_size=8)
    return task


def batches(task, data, *, count, rank=0, world=1, first=0):
    stream = SampleStream(
        manifest_of(data),
        preprocess=PREPROCESS,
        tokenizer=None,
        global_batch_size=8,
        columns=task.columns,
        workers=0,
        rank=rank,
        world_size=world,
        start_step=first,
    )
    with stream:
        return [next(stream) for _ in range(count)]


def test_a_caption_is_a_prompt_of_the_class_drawn_by_sample_and_epoch(data):
    task = build(FLYPConfig(labels=LABELS), data)
    tokenizer = get_tokenizer(task.model.spec)
    seen: dict[tuple[str, int], str] = {}
    for batch in batches(task, data, count=12):  # four epochs
        tokens = task.tensors(batch)["text"]
        for row, (uid, epoch, color) in enumerate(zip(batch["uid"], batch["epoch"], batch["color"], strict=True)):
            (prompt,) = (
                template.format(color)
                for template in ("a {} thing.", "something {}.", "{}!")
                if torch.equal(tokenizer([template.format(color)])[0], tokens[row])
            )
            seen[uid, int(epoch)] = prompt.replace(color, "{}")
    assert len(seen) == 4 * 24
    drawn = [*seen.values()]
    assert min(drawn.count(template) for template in LABELS.templates) > 96 / 3 / 2
    assert len({tuple(seen[uid, epoch] for epoch in range(4)) for uid, _ in seen}) > 12  # epochs differ
    # On two ranks, and from a step in the middle, each sample has the same prompt.
    for rank in (0, 1):
        for batch in batches(task, data, count=6, rank=rank, world=2, first=3):
            for row, (uid, epoch, color) in enumerate(zip(batch["uid"], batch["epoch"], batch["color"], strict=True)):
                wanted = tokenizer([seen[uid, int(epoch)].format(color)])[0]
                assert torch.equal(task.tensors(batch)["text"][row], wanted)


def test_images_of_one_class_are_positives_if_the_column_is_named(data):
    plain, grouped = (build(FLYPConfig(labels=LABELS, positives=name), data) for name in ("pair", "color"))
    assert plain.columns == grouped.columns == ("color",)
    (batch,) = batches(plain, data, count=1)
    assert "group" not in plain.tensors(batch)
    same = grouped.tensors(batch)["group"]
    colors = np.array(batch["color"])
    assert torch.equal(same[:, None] == same, torch.from_numpy(colors[:, None] == colors))


@pytest.mark.parametrize("parts", [1, 2])
def test_the_gradient_of_a_classifier_is_that_of_its_cross_entropy(data, parts):
    task = build(ClassificationConfig(labels=LABELS, classifier="zeros"), data)
    with torch.no_grad():
        task.model.classifier.weight.normal_(generator=torch.Generator().manual_seed(1))
    (batch,) = batches(task, data, count=1)
    assert Gradients(task, HERE, micro_batches=parts).backward(task.prepare(batch), 0).keys() == {"loss"}
    found = {name: p.grad for name, p in task.model.named_parameters() if p.grad is not None}
    assert {name.partition(".")[0] for name in found} == {"visual", "classifier"}
    model = create_model(NAME, seed=3)
    weight = task.model.classifier.weight.detach().clone().requires_grad_()
    image = (torch.from_numpy(batch["image"]) / 255 - torch.tensor(model.spec.preprocess.mean).view(3, 1, 1)) / (
        torch.tensor(model.spec.preprocess.std).view(3, 1, 1)
    )
    labels = torch.tensor([COLORS.index(color) for color in batch["color"]])
    F.cross_entropy(F.normalize(model.encode_image(image), dim=-1) @ weight.T, labels).backward()
    wanted = {f"visual.{name}": p.grad for name, p in model.visual.named_parameters()} | {
        "classifier.weight": weight.grad
    }
    assert wanted.keys() == found.keys()
    for name, grad in wanted.items():
        assert (found[name] - grad).norm() <= 1e-5 * grad.norm() + 1e-9, name


def test_prompts_make_the_first_classifier_a_zero_shot_one(data):
    task = build(ClassificationConfig(labels=LABELS), data)
    tokens = get_tokenizer(task.model.spec)(["a red thing.", "something red.", "red!"])
    model = create_model(NAME, seed=3).eval()
    with torch.no_grad():
        mean = F.normalize(model.encode_text(tokens), dim=-1).mean(0)
    wanted = F.normalize(mean, dim=-1) * model.logit_scale.exp()
    torch.testing.assert_close(task.model.classifier.weight[2], wanted, rtol=1e-5, atol=1e-5)


def test_labels_that_do_not_fit_are_counted_and_named(data, tmp_path):
    spec = create_model(NAME).spec
    with pytest.raises(ClipTrainError, match=r"8 of the 24 samples of .* are of other classes in the column 'color'"):
        build(FLYPConfig(labels=LabelsConfig(column="color", classes=("red", "green"))), data)
    with pytest.raises(ClipTrainError, match=r"task\.labels of .* no column 'colour'; did you mean 'color'"):
        build(FLYPConfig(labels=LabelsConfig(column="colour")), data)
    with pytest.raises(ClipTrainError, match=r"task\.labels: .*no \{\} for the class name"):
        FLYPConfig(labels=LabelsConfig(column="color", templates=("a photo",))).check(spec)
    with pytest.raises(ClipTrainError, match=r"the prompt 'blue blue .*' has more tokens than the model's context"):
        build(FLYPConfig(labels=LabelsConfig(column="color", templates=("{} " * 90,))), data)
    images = [{"image": make_image("red", i), "caption": "", "color": name} for i, name in enumerate(("red", "pink"))]
    make_dataset(tmp_path / "other", images)
    task = FLYPConfig(labels=LABELS).build(create_model(NAME), precision="fp32", world=HERE)
    with pytest.raises(ClipTrainError, match=r"the classes of .*other are others .*task\.labels\.classes"):
        task.start(manifest_of(data, tmp_path / "other"), None, batch_size=2)
    make_dataset(tmp_path / "bare", [{**images[0], "color": None}, {**images[1], "color": "red"}])
    with pytest.raises(ClipTrainError, match=r"1 of the 2 samples of .*bare have no label"):
        build(FLYPConfig(labels=LABELS), tmp_path / "bare")


def test_a_classifier_of_another_run_is_checked(data, tmp_path):
    first = build(ClassificationConfig(labels=LABELS), data)
    extra = ClassificationConfig(labels=LABELS).separate(dict(first.model.state_dict()), first.about)["classifier"]
    file = str(tmp_path / "classifier.safetensors")
    save_file(extra.tensors, file, extra.metadata)
    save_model(tmp_path / "model.safetensors", create_model(NAME), create_model(NAME).spec)
    again = build(ClassificationConfig(labels=LABELS, classifier=file), data)
    assert torch.equal(again.model.classifier.weight, first.model.classifier.weight)
    other = LabelsConfig(column="color", classes=("green", "blue", "red"))
    with pytest.raises(ClipTrainError, match=r"has other classes than the labels \('their order'\)"):
        build(ClassificationConfig(labels=other, classifier=file), data)
    with pytest.raises(ClipTrainError, match="is not a classifier of clip-train"):
        build(ClassificationConfig(labels=LABELS, classifier=str(tmp_path / "model.safetensors")), data)
    with pytest.raises(ClipError, match=r"task\.classifier = 'probe' must be prompts, zeros"):
        build(ClassificationConfig(labels=LABELS, classifier="probe"), data)


def fit(recipe: str, *words: object) -> None:
    path = Path(__file__).parents[2] / f"pipelines/recipes/finetune_{recipe}.toml"
    command = "interpolate" if recipe == "wise_ft" else "fit"
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, str(path), *map(str, words)])
    assert not stopped.value.code


@pytest.mark.slow
def test_the_recipes_train_what_they_say(data, tmp_path):
    base = create_model(NAME, seed=5)
    save_model(tmp_path / "base.safetensors", base, base.spec)
    keys = {"name": NAME, "pretrained": tmp_path / "base.safetensors", "quick_gelu": "false"}
    model, start = (
        [word for name, value in keys.items() for word in (f"--{table}.{name}", value)] for table in ("model", "base")
    )
    short = ("--data.sources.0.dataset", data, "--data.workers", 0, "--train.batch_size", 8, "--train.epochs", 0)
    common = (*model, *short, "--task.labels.column", "color", "--train.steps", 6, "--optim.warmup", 1)
    moved = {}
    for recipe, more in (
        ("flyp", ()),
        ("probe", ("--optim.lr", 0.1)),
        ("lp_ft", ("--task.classifier", tmp_path / "probe/classifier.safetensors")),
    ):
        fit(recipe, *common, *more, "--run", tmp_path / recipe)
        found = create_model(NAME, str(tmp_path / recipe / "model.safetensors")).state_dict()
        moved[recipe] = {
            "visual" if name.startswith("visual.") else name if name.startswith("logit") else "text"
            for name, value in base.state_dict().items()
            if not torch.equal(found[name], value)
        }
    assert moved == {"flyp": {"visual", "text", "logit_scale"}, "probe": set(), "lp_ft": {"visual"}}
    weights = [load_file(tmp_path / name / "classifier.safetensors")["weight"] for name in ("probe", "lp_ft")]
    assert 0 < (weights[0] - weights[1]).abs().max() < 1e-3 < weights[0].abs().max()  # it went on from the probe
    mixed = ("--tuned", tmp_path / "flyp/model.safetensors", "--output", tmp_path / "wise_ft", "--alphas", 0.5)
    fit("wise_ft", *start, *mixed)
    middle = create_model(NAME, str(tmp_path / "wise_ft/alpha-0.5.safetensors")).state_dict()
    tuned = create_model(NAME, str(tmp_path / "flyp/model.safetensors")).state_dict()
    for name, value in middle.items():
        torch.testing.assert_close(value, (base.state_dict()[name] + tuned[name]) / 2, rtol=0, atol=1e-6)
