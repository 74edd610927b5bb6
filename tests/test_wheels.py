"""Each package builds a wheel that installs alone into an empty environment and imports there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ["clip-core", "clip-data", "clip-models", "clip-train", "clip-eval"]


def run(*command: str, **options) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    for package in PACKAGES:
        run("uv", "build", "--quiet", "--wheel", "--package", package, "--out-dir", str(folder), cwd=ROOT)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("package", PACKAGES)
def test_wheel_installs_alone_and_imports(package, wheels, tmp_path):
    assert shutil.which("uv"), "uv is what the README asks for"
    environment = tmp_path / "env"
    module = package.replace("-", "_")
    # The lock's versions, so that the test tells about our wheels and not about what was published today.
    constraints = tmp_path / "constraints.txt"
    export = ("uv", "export", "--quiet", "--locked", "--all-packages", "--no-hashes", "--no-emit-workspace")
    run(*export, "-o", str(constraints), cwd=ROOT)
    run("uv", "venv", "--quiet", "--python", sys.executable, str(environment))
    (wheel,) = wheels.glob(f"{module}-*.whl")
    python = str(environment / "bin" / "python")
    install = ("uv", "pip", "install", "--quiet", "--python", python, "--find-links", str(wheels))
    run(*install, "-c", str(constraints), str(wheel), cwd=tmp_path)
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    check = f"import {module}; [getattr({module}, name) for name in {module}.__all__]; print({module}.__file__)"
    assert str(environment) in run(python, "-c", check, cwd=tmp_path, env=clean)
    installed = {name.lower() for name in run("uv", "pip", "list", "--python", python, "--format", "freeze").split()}
    siblings = {other for other in PACKAGES if any(line.startswith(f"{other}==") for line in installed)}
    below = {"clip-data", "clip-models"} if package in ("clip-train", "clip-eval") else set()
    assert siblings == {"clip-core", package} | below
    if package == "clip-data":
        assert not any(line.startswith("torch==") for line in installed)
    if package == "clip-models":
        assert not any(line.startswith("ray==") for line in installed)
