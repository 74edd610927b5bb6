"""What the code promises of its shape: file sizes, light imports, no loose ends."""

import ast
import re
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "packages").glob("*/src/**/*.py"))


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_source_files_can_be_read_in_one_sitting():
    sizes = {path.relative_to(ROOT): lines(path) for path in SOURCES if path.name != "__init__.py"}
    assert max(sizes.values()) <= 600, {path: n for path, n in sizes.items() if n > 600}
    assert statistics.median(sizes.values()) <= 180


def test_pipeline_scripts_are_short():
    sizes = {path.name: lines(path) for path in (ROOT / "pipelines").glob("*.py")}
    assert sizes
    assert max(sizes.values()) <= 120, sizes


def test_entry_points_are_short():
    # An entry point parses, builds and runs: the modules of the console scripts, their sub-commands, and __main__.
    projects = [tomllib.loads(path.read_text()) for path in (ROOT / "packages").glob("*/pyproject.toml")]
    scripts = [target for project in projects for target in project["project"].get("scripts", {}).values()]
    modules = {target.partition(":")[0].replace(".", "/") + ".py" for target in scripts}
    entries = [
        path
        for path in SOURCES
        if path.as_posix().rpartition("/src/")[2] in modules
        or path.parent.name == "commands"
        or path.name == "__main__.py"
    ]
    assert len(scripts) == 4
    assert len(entries) >= len(modules) + 12
    sizes = {path.relative_to(ROOT): lines(path) for path in entries}
    assert max(sizes.values()) <= 80, {path: n for path, n in sizes.items() if n > 80}


def test_light_packages_import_no_heavy_library():
    heavy = "{'torch', 'ray', 'transformers', 'timm', 'torchvision', 'aiohttp', 'PIL'}"
    code = f"import sys, clip_data, clip_models, clip_train, clip_eval; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_no_todo_without_an_issue():
    # Without an issue's number behind it, a note to oneself is lost.
    loose = re.compile(r"\b(TODO|FIXME|XXX)\b(?!\(#\d+\))")
    tracked = [*SOURCES, *(ROOT / "pipelines").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    found = [path for path in tracked if path != Path(__file__) and loose.search(path.read_text(encoding="utf-8"))]
    assert found == []


def test_only_the_dataset_module_knows_the_names_in_a_dataset_folder():
    # Paths, keys and stage names have one home: a second spelling would go its own way one day.
    names = re.compile(r"^(shards|commits|columns|selections|tombstones|sources)/|^score-$|^0[58]d$")
    files = {"dataset.json", "units.parquet", "selection.json", "/selection.json"}
    home = ROOT / "packages/clip-data/src/clip_data/dataset.py"

    def spelled(path: Path) -> list[str]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        texts = [
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
        ]
        return [text for text in texts if names.search(text) or text in files]

    assert {"dataset.json", "/selection.json", "08d", "score-"} <= {*spelled(home)}
    packages = [ROOT / "packages" / name / "src" for name in ("clip-data", "clip-eval")]
    modules = [path for package in packages for path in sorted(package.rglob("*.py")) if path != home]
    assert {str(path.relative_to(ROOT)): found for path in modules if (found := spelled(path))} == {}
