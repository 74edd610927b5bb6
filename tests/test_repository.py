"""The files that contributors, archives and code hosts read: complete, well-formed, and in agreement with the code."""

import datetime
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECTS = {
    path.parent.name: tomllib.loads(path.read_text())["project"] for path in ROOT.glob("packages/*/pyproject.toml")
}
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("packages/*/README.md")]


def load(name: str):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_citation():
    citation = load("CITATION.cff")
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0"
    for work in (citation, *citation["references"]):
        assert all(
            {"name"} == author.keys() or {"family-names", "given-names"} == author.keys() for author in work["authors"]
        )
        assert work["type"] in ("software", "conference-paper")
        assert work["title"]
    texts = [value for key, value in citation.items() if key not in ("authors", "keywords", "references")]
    assert all(isinstance(value, str | datetime.date) for value in texts), "YAML reads 1.10 as a number: quote it"
    assert {project["version"] for project in PROJECTS.values()} == {citation["version"]}
    assert {project["license"] for project in PROJECTS.values()} == {citation["license"]}
    assert {project["urls"]["Repository"] for project in PROJECTS.values()} == {citation["repository-code"]}


@pytest.mark.parametrize("name", PROJECTS)
def test_package_metadata(name):
    project = PROJECTS[name]
    assert project["name"] == name
    assert project["keywords"][0] == "clip"
    assert project["urls"].keys() == {"Repository", "Documentation", "Changelog", "Issues"}
    assert all(url.startswith(project["urls"]["Repository"]) for url in project["urls"].values())
    low, high = (int(number) for number in re.findall(r"3\.(\d+)", project["requires-python"]))
    listed = [line for line in project["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert listed == [f"Programming Language :: Python :: 3.{minor}" for minor in range(low, high)]


def test_changelog():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", text, re.M)
    assert versions[0] == ("Unreleased", "")
    assert all(date for _, date in versions[1:])
    assert re.findall(r"^## (?!\[)", text, re.M) == []
    kinds = set(re.findall(r"^### (.+)$", text, re.M))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_workflow_does_what_ci_does():
    workflow = load(".github/workflows/ci.yml")
    assert workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    actions = [step["uses"] for step in job["steps"] if "uses" in step]
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@v\d+", action) for action in actions)
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_issue_forms(name):
    form = load(f".github/ISSUE_TEMPLATE/{name}.yml")
    assert {"name", "description", "body"} <= form.keys() <= {"name", "description", "body", "labels", "title"}
    fields = [part for part in form["body"] if part["type"] != "markdown"]
    assert {part["type"] for part in fields} <= {"input", "textarea", "dropdown", "checkboxes"}
    assert len({part["id"] for part in fields}) == len(fields)
    assert all(part["attributes"]["label"] for part in fields)
    assert any(part.get("validations", {}).get("required") for part in fields)
    for part in fields:
        assert ("options" in part["attributes"]) == (part["type"] in ("dropdown", "checkboxes"))
    if name == "bug":
        assert set(fields[2]["attributes"]["options"]) >= PROJECTS.keys()


def test_hooks_are_the_lint_step_of_ci():
    (repo,) = load(".pre-commit-config.yaml")["repos"]
    entries = {hook["entry"].replace("uv run --no-sync", "uv run") for hook in repo["hooks"]}
    lint = (ROOT / ".ci/run").read_text().partition('step "lint"\n')[2].partition("\n\n")[0].splitlines()
    assert entries == {*lint, "uv lock --check"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (page.parent / target).exists(), target
    if page.parent == ROOT:
        for path in re.findall(r"`((?:\.ci|\.github|infra|packages|pipelines|tests)/[\w./-]+)`", text):
            assert (ROOT / path).exists(), path


def test_the_diagram_of_the_stream_has_every_module():
    text = (ROOT / "packages/clip-data/README.md").read_text(encoding="utf-8")
    (diagram,) = re.findall(r"```mermaid\n(.*?)```", text, re.S)
    modules = {path.name for path in (ROOT / "packages/clip-data/src/clip_data/stream").glob("[!_]*.py")}
    assert set(re.findall(r"\[\"(\w+\.py)", diagram)) == modules
    nodes = set(re.findall(r"^ *(\w+)[\[(]", diagram, re.M))
    assert set(re.findall(r"(?:^ *|--> )(\w+)(?= --|$)", diagram, re.M)) - {"end"} == nodes - {"flowchart"}
