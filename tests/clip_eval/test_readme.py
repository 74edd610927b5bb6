import re
from pathlib import Path

from clip_data.select import SelectConfig, select
from tests.support.datasets import make_dataset
from tests.support.evals import make_image, tiny_model

README = Path(__file__).parents[2] / "packages/clip-eval/README.md"


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    samples = [{"image": make_image("red", i), "caption": f"red {i}", "label": f"thing {i % 2}"} for i in range(8)]
    select(make_dataset(tmp_path / "data", samples), SelectConfig(name="heldout"))
    (tmp_path / "run").mkdir()
    tiny_model(tmp_path / "run/model.safetensors")
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(example, str(README), "exec"), {})
    assert "captions text_to_image_recall@10" in capsys.readouterr().out
    assert (tmp_path / "report.html").is_file()
