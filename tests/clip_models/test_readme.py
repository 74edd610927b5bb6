import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "packages" / "clip-models" / "README.md"


@pytest.mark.slow
def test_the_example_runs_as_printed(tmp_path):
    code, output = re.findall(r"```(?:python|text)\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[:2]
    assert len([line for line in code.splitlines() if line]) == 10
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == output
    assert (tmp_path / "model.safetensors").stat().st_size > 1_000_000
