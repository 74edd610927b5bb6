"""`clip-train interpolate`: exact ends, the weights between, and the curve of the scores."""

import json

import pytest
import torch

from clip_core import ClipError
from clip_models import create_model, load_model, save_model
from clip_train import cli
from clip_train.interpolation import interpolate
from tests.support.evals import color_dataset

NAME = "ViT-Ti-4-24"


def command(*words: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["interpolate", *map(str, words)])
    return int(stopped.value.code or 0)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interpolate")
    for name, seed in (("base", 1), ("tuned", 2)):
        model = create_model(NAME, seed=seed)
        save_model(folder / f"{name}.safetensors", model, model.spec)
    color_dataset(folder / "data")
    (folder / "eval.toml").write_text(
        f"""
        [[benchmarks]]
        name = "colors"
        kind = "zeroshot"
        dataset = "{folder / "data"}"
        label_column = "color"
        """
    )
    return folder


def inputs(place, output):
    return (
        *("--base.name", NAME, "--base.pretrained", place / "base.safetensors"),
        *("--tuned", place / "tuned.safetensors", "--output", output),
    )


def test_weights_between_two_state_dicts():
    base = {"w": torch.tensor([1.0, -2.0]), "h": torch.tensor([1.0]).bfloat16(), "n": torch.tensor(3)}
    tuned = {"w": torch.tensor([3.0, 2.0]), "h": torch.tensor([2.0]).bfloat16(), "n": torch.tensor(8)}
    middle = interpolate(base, tuned, 0.25)
    assert middle["w"].tolist() == [1.5, -1.0]
    assert (middle["h"].item(), middle["h"].dtype, middle["n"].item()) == (1.25, torch.bfloat16, 8)
    for alpha, end in ((0, base), (1, tuned)):
        assert all(torch.equal(value, end[name]) for name, value in interpolate(base, tuned, alpha).items())


def test_the_ends_are_the_models_to_the_bit(place, tmp_path, capsys):
    assert command(*inputs(place, tmp_path / "out"), "--keep", 0, 0.5, 1) == 0
    assert "alpha-0.5.safetensors" in capsys.readouterr().out
    found = {
        alpha: load_model(tmp_path / f"out/alpha-{alpha}.safetensors")[0].state_dict() for alpha in ("0", "0.5", "1")
    }
    ends = [load_model(place / f"{name}.safetensors")[0].state_dict() for name in ("base", "tuned")]
    for name, base in ends[0].items():
        tuned = ends[1][name]
        assert torch.equal(found["0"][name], base)
        assert torch.equal(found["1"][name], tuned)
        torch.testing.assert_close(found["0.5"][name], (base + tuned) / 2, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_curve_has_the_scores_of_each_model_and_is_continued(place, tmp_path, capsys):
    words = (*inputs(place, tmp_path / "out"), "--evaluate", place / "eval.toml", "--alphas", 0, 0.5, 1)
    assert command(*words) == 0
    shown = capsys.readouterr().out
    curve = json.loads((tmp_path / "out/curve.json").read_text())
    assert [point["alpha"] for point in curve["points"]] == [0, 0.5, 1]
    assert {row["metric"] for point in curve["points"] for row in point["rows"]} == {"top1", "mean_per_class_recall"}
    assert [line.split()[0] for line in shown.splitlines()[1:4]] == ["0", "0.5", "1"]
    assert not list((tmp_path / "out").glob("*.safetensors"))
    page = (tmp_path / "out/report.html").read_text()
    assert "Between two models" in page
    assert page.count("<svg") == 2
    # The ends have the scores of the two models themselves.
    from clip_core.cli import parse
    from clip_eval.config import EvalConfig
    from clip_eval.evaluation import evaluate

    benchmarks = parse(EvalConfig, [str(place / "eval.toml")], prog="eval", description="").benchmarks
    for name, point in (("base", curve["points"][0]), ("tuned", curve["points"][2])):
        rows = evaluate(
            EvalConfig(model=str(place / f"{name}.safetensors"), out=str(tmp_path / name), benchmarks=benchmarks)
        )
        assert [row["value"] for row in rows] == [row["value"] for row in point["rows"]]
    # Without its last point the curve is completed, and the other points stay.
    curve["points"][1]["rows"][0]["value"] = 0.125
    (tmp_path / "out/curve.json").write_text(json.dumps({**curve, "points": curve["points"][:2]}))
    assert command(*words) == 0
    again = json.loads((tmp_path / "out/curve.json").read_text())
    assert [point["alpha"] for point in again["points"]] == [0, 0.5, 1]
    assert again["points"][1]["rows"][0]["value"] == 0.125


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--keep", "1.5"), "keep has 1.5: an alpha is in [0, 1]"),
        (("--alphas", "0.5"), "nothing to do"),
        (("--keep", "0.5", "--base.pretrained", ""), "base.pretrained is empty"),
        (("--keep", "0.5", "--base.image_size", "48"), "different networks (vision.image_size"),
        (("--evaluate", "nowhere.toml"), "cannot read the recipe nowhere.toml"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(place, tmp_path, capsys, words, message):
    flags = dict(zip(*[iter(map(str, inputs(place, tmp_path / "out")))] * 2, strict=True))
    flags.pop(words[-2] if words[-2] in flags else "", None)
    assert command(*(part for pair in flags.items() for part in pair), *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_another_tuned_model_is_not_mixed_into_a_curve(place, tmp_path):
    from clip_core.store import Store
    from clip_train.interpolation import Interpolation, measure_curve
    from clip_train.model import ModelConfig

    base = ModelConfig(name=NAME, pretrained=str(place / "base.safetensors"))
    models = Interpolation(base, str(place / "tuned.safetensors"))
    store = Store(tmp_path / "out")
    measure_curve(models, store, [0.5], [], lambda path, out: [])
    with pytest.raises(ClipError, match="the curve of other tuned weights"):
        measure_curve(Interpolation(base, str(place / "base.safetensors")), store, [0.5], [], lambda path, out: [])
