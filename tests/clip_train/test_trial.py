"""`clip-train bench` and `clip-train lr-find`."""

import json
import sys

import pytest

from clip_train import cli


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f"""
        run = "{tmp_path / "run"}"
        model.name = "ViT-Ti-4-24"
        data.synthetic.samples = 64
        train = {{ steps = 10, batch_size = 8, precision = "fp32", threads = 1, device = "cpu" }}
        """
    )

    def call(command: str, *flags: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clip-train", command, str(recipe), *flags])
        with pytest.raises(SystemExit) as ending:
            cli.main()
        assert not (tmp_path / "run").exists()
        return int(ending.value.code or 0), *capsys.readouterr()

    return call


@pytest.mark.slow
def test_bench_says_what_limits(call, monkeypatch):
    code, output, _ = call("bench", "--repeats", "2", "--json", "true")
    found = json.loads(output)
    assert code == 0
    assert found["samples"] == 8
    assert found["limit"] == "device"
    assert 0 < found["loader_s"] < found["compute_s"]

    from clip_train.synthetic import SyntheticStream

    fast = SyntheticStream.__next__

    def slow(self):
        import time

        time.sleep(1)
        return fast(self)

    monkeypatch.setattr(SyntheticStream, "__next__", slow)
    code, output, _ = call("bench", "--repeats", "1")
    assert output.splitlines()[-1] == "limited by the loader"
    assert "samples/s" in output


@pytest.mark.slow
def test_lr_find_writes_the_curve(call, tmp_path):
    out = tmp_path / "curve.json"
    code, output, _ = call("lr-find", "--tries", "20", "--highest", "0.1", "--out", str(out))
    assert code == 0
    curve = json.loads(out.read_text())
    assert curve["lr"][0] == 1e-7
    assert curve["lr"] == sorted(curve["lr"])
    assert f"suggested optim.lr = {curve['suggested']:.3g}" in output
    assert curve["suggested"] * 10 == pytest.approx(curve["lr"][curve["smoothed"].index(min(curve["smoothed"][2:]))])
    for flags, message in [
        (("--lowest", "2"), "lowest = 2.0 must be above 0 and below highest = 1.0"),
        (("--tries", "3"), "tries = 3 must be at least 10"),
    ]:
        code, output, errors = call("lr-find", *flags)
        assert (code, output) == (2, "")
        assert message in errors


def test_the_suggestion_is_a_tenth_of_the_rate_of_the_lowest_loss():
    from clip_train.trial import suggestion

    rates = [10.0**power for power in range(-10, 0)]
    assert suggestion(rates, [0.5, 5, 5, 4, 3, 2, 1, 2, 9, 9]) == pytest.approx(1e-5)
