"""Contributing's recipes: a task, a loss, an optimizer and a schedule from outside the package, named in a recipe."""

import json

import pytest
from safetensors.torch import load_file

from clip_core.cli import parse
from clip_core.errors import ClipError
from clip_train import FitConfig, fit
from clip_train.config import resolve
from tests.clip_train.outside import ShiftedConfig

HERE = "tests.clip_train.outside"
STEPS = 4


@pytest.fixture
def run(tmp_path, datasets):
    """Returns a function that trains from a recipe with further lines, in a folder of that name."""

    def train(name: str, lines: str):
        recipe = tmp_path / f"{name}.toml"
        recipe.write_text(
            f"""
            run = "{tmp_path / name}"
            model.name = "ViT-Ti-4-24"
            data = {{ sources = [{{ dataset = "{datasets / "train"}" }}], workers = 0 }}
            train = {{ steps = {STEPS}, batch_size = 8, threads = 1, precision = "fp32", log_every = 1 }}
            {lines}
            """
        )
        config = parse(FitConfig, [str(recipe)], prog="fit", description="")
        result = fit(config)
        log = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        return config, result, [row for row in log if "event" not in row]

    return train


@pytest.mark.slow
def test_a_task_from_outside_is_trained_and_belongs_to_the_identity_of_the_run(run, tmp_path):
    kind = f"{HERE}:ShiftedConfig"
    config, result, rows = run("shifted", f'task = {{ kind = "{kind}", shift = 0.5 }}\noptim.lr = 1e-3')
    assert config.task == ShiftedConfig(shift=0.5)
    assert len(rows) == STEPS
    assert rows[-1]["loss"] == result.loss != rows[0]["loss"]
    stored = json.loads((tmp_path / "shifted/config.json").read_text())["task"]
    assert (stored["kind"], stored["shift"]) == (kind, 0.5)
    with pytest.raises(ClipError, match=r"task\.shift is 0\.5 there and 0\.0 now"):
        run("shifted", f'task.kind = "{kind}"\noptim.lr = 1e-3')


@pytest.mark.slow
def test_a_loss_from_outside_is_minimised(run):
    _, _, ours = run("ours", 'optim.lr = 1e-3\ntask.loss = "contrastive"')
    _, _, rows = run("distance", f'optim.lr = 1e-3\ntask.loss = "{HERE}:distance"')
    assert rows[-1]["loss"] < rows[0]["loss"] != ours[0]["loss"]


def test_an_option_that_a_loss_from_outside_does_not_take_is_named_before_the_run_writes(run, tmp_path):
    with pytest.raises(ClipError, match=r"outside:distance' does not take .*'label_smoothing'"):
        run("smooth", f'task = {{ loss = "{HERE}:distance", label_smoothing = 0.1 }}')
    assert not (tmp_path / "smooth").exists()


@pytest.mark.slow
def test_an_optimizer_and_a_schedule_from_outside_are_used_and_saved(run, tmp_path):
    _, _, rows = run("sgd", f'optim = {{ name = "{HERE}:sgd", schedule = "{HERE}:linear", lr = 0.1, warmup = 1 }}')
    assert [row["lr"] for row in rows] == pytest.approx([0.1, 0.1, 0.1 * 2 / 3, 0.1 / 3])
    (file,) = (tmp_path / f"sgd/checkpoints/step-{STEPS:08d}").glob("*.safetensors")
    state = [name for name in load_file(file) if name.startswith("optimizer/")]
    assert {name.rpartition("|")[2] for name in state} == {"momentum_buffer"}
    config, result, _ = run(
        "sgd", f'optim = {{ name = "{HERE}:sgd", schedule = "{HERE}:linear", lr = 0.1, warmup = 1 }}'
    )
    (tmp_path / "sgd/done.json").unlink()
    assert fit(config) == result  # exported again from the checkpoint


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task.kind", "contrastiv"], "there is no task 'contrastiv'; did you mean 'contrastive'?"),
        (["--task.loss", "contrast"], "there is no loss 'contrast'; did you mean 'contrastive'?"),
        (["--optim.name", "adam"], "there is no optimizer 'adam'; did you mean 'adamw'?"),
        (["--optim.schedule", "cosin"], "there is no schedule 'cosin'; did you mean 'cosine'?"),
    ],
)
def test_names_are_checked_before_anything_is_loaded(words, message):
    flags = ["--run", "x", "--model.name", "ViT-Ti-4-24", "--data.sources.0.dataset", "data", "--train.steps", "1"]
    with pytest.raises(ClipError) as error:
        resolve(parse(FitConfig, [*flags, *words], prog="fit", description=""))
    assert message in str(error.value)


@pytest.mark.parametrize(
    "line", ['task.loss = "HERE:gone"', 'optim.name = "no.such:name"', 'optim.schedule = "HERE:gone"']
)
def test_what_cannot_be_imported_ends_the_run_before_it_writes(run, tmp_path, line):
    with pytest.raises(ClipError, match="cannot be imported"):
        run("gone", line.replace("HERE", HERE))
    assert not (tmp_path / "gone").exists()
