import re
from pathlib import Path

import pytest

from clip_train import FitResult

README = Path(__file__).parents[2] / "packages" / "clip-train" / "README.md"


@pytest.mark.slow
def test_the_example_runs_as_printed(datasets, tmp_path, monkeypatch, capsys):
    code = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[0]
    assert len([line for line in code.splitlines() if line]) <= 10
    monkeypatch.chdir(tmp_path)
    Path("data").symlink_to(datasets / "train")
    names: dict = {}
    exec(code.replace("batch_size=64", "batch_size=16"), names)
    assert isinstance(names["result"], FitResult)
    assert names["result"].steps == 5
    assert capsys.readouterr().out == f"5 {names['result'].loss} runs/first/model.safetensors\n"
