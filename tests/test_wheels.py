"""Each package builds a wheel that installs alone into an empty environment and imports there."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import HeaderParser
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


def siblings_of(requirements: list[str]) -> list[str]:
    names = [requirement.partition("==")[0].partition("[")[0].partition(" ")[0] for requirement in requirements]
    return [requirement for requirement, name in zip(requirements, names, strict=True) if name in PACKAGES]


def test_siblings_are_pinned_to_the_one_version():
    # The packages are tested together: a wheel that took another version of a sibling would be untested.
    projects = [
        tomllib.loads((ROOT / "packages" / name / "pyproject.toml").read_text())["project"] for name in PACKAGES
    ]
    (version,) = {project["version"] for project in projects}
    for project in projects:
        names = [requirement.partition("==")[0] for requirement in siblings_of(project["dependencies"])]
        assert siblings_of(project["dependencies"]) == [f"{name}=={version}" for name in names], project["name"]


@pytest.mark.slow
def test_wheels_carry_their_metadata(wheels):
    for package in PACKAGES:
        (wheel,) = wheels.glob(f"{package.replace('-', '_')}-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
            metadata = HeaderParser().parsestr(archive.read(name).decode())
        required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
        assert {line.partition("==")[2] for line in siblings_of(required)} <= {metadata["Version"]}
        assert len(siblings_of(required)) >= (package != "clip-core")
        assert len(metadata.get_all("Project-URL")) == 4
        assert "Typing :: Typed" in metadata.get_all("Classifier")
        assert metadata["Keywords"].startswith("clip,")


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_wheel_carries_every_file_of_the_package(package, wheels):
    source = ROOT / "packages" / package / "src"
    tracked = set(run("git", "ls-files", ".", cwd=source).splitlines())
    (wheel,) = wheels.glob(f"{package.replace('-', '_')}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        carried = set(archive.namelist())
    data = {name for name in tracked if not name.endswith(".py")}
    assert f"{package.replace('-', '_')}/py.typed" in data
    if package == "clip-data":
        demo = {
            f"clip_data/demo/data/{name}" for name in ("captions.toml", "kinds.toml", "outlines.json", "scenes.toml")
        }
        assert {"clip_data/acquire/special_networks.txt", "clip_data/sidecar.toml", *demo} <= data
    assert tracked - carried == set()


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
    both = {"clip-data", "clip-models"}
    below = {"clip-train": {*both, "clip-eval"}, "clip-eval": both}.get(package, set())
    assert siblings == {"clip-core", package} | below
    if package == "clip-data":
        assert not any(line.startswith("torch==") for line in installed)
    if package == "clip-models":
        assert not any(line.startswith("ray==") for line in installed)
