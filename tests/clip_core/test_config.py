"""Recipes and flags: strict keys, types and precedence, and a resolved config that runs again."""

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from clip_core import ClipError
from clip_core.cli import parse, run_cli
from clip_core.config import ConfigError, difference, fingerprint, from_dict, load_file, resolved, to_dict
from clip_core.store import Store, claim


@dataclass(frozen=True, kw_only=True)
class Optim:
    lr: float = 1e-3
    """learning rate"""
    betas: tuple[float, float] = (0.9, 0.98)
    """decay of the moments"""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ClipError(f"lr = {self.lr} must be above 0")


@dataclass(frozen=True, kw_only=True)
class Run:
    out: str
    """folder"""
    steps: int = 10
    """number of steps"""
    kind: Literal["fast", "slow"] = "fast"
    """how"""
    names: tuple[str, ...] = ()
    """some names"""
    limit: int | None = None
    """at most"""
    amp: bool = False
    """half precision"""
    weights: dict[str, float] = field(default_factory=dict)
    """weight of each source"""
    optim: Optim = field(default_factory=Optim)
    """the optimizer"""


def run(args: list[str]) -> Run:
    return parse(Run, args, prog="tool run", description="a run")


@pytest.fixture
def recipe(tmp_path):
    def write(text: str, name: str = "run.toml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_defaults_recipe_and_flags_take_precedence_in_this_order(recipe):
    file = recipe('out = "a"\nsteps = 20\nlimit = 3\nweights = {web = 2}\n[optim]\nlr = 1\n')
    found = run([file, "--steps", "30", "--optim.betas", "0.5", "0.6", "--amp", "True"])
    assert found == Run(
        out="a", steps=30, limit=3, amp=True, weights={"web": 2.0}, optim=Optim(lr=1.0, betas=(0.5, 0.6))
    )
    assert run(["--out", "b", "--names", "x", "y"]) == Run(out="b", names=("x", "y"))


def test_flags_complete_a_recipe(recipe):
    file = recipe("steps = 20\n")
    assert run([file, "--out", "c"]) == Run(out="c", steps=20)
    assert run([file, "--out=c", "--steps", "5"]) == Run(out="c", steps=5)
    with pytest.raises(ConfigError, match=r"run.toml: missing key out"):
        run([file, "--steps", "5"])


def test_a_recipe_extends_others(recipe):
    recipe('out = "base"\nsteps = 1\n[optim]\nlr = 0.5\nbetas = [0.1, 0.2]\n', "base.toml")
    recipe("steps = 2\n", "more.toml")
    file = recipe('extends = ["base.toml", "more.toml"]\n[optim]\nlr = 0.25\n')
    assert run([file]) == Run(out="base", steps=2, optim=Optim(lr=0.25, betas=(0.1, 0.2)))


def test_recipes_that_extend_each_other(recipe):
    recipe('extends = "run.toml"', "base.toml")
    with pytest.raises(ConfigError, match=r"'extends' forms a cycle: .*run.toml -> .*base.toml -> .*run.toml"):
        run([recipe('extends = "base.toml"')])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz = 3", "unknown key stepz; did you mean steps?"),
        ("[optim]\nlearning = 3", "unknown key optim.learning; valid keys: lr, betas"),
        ("[optim]\nbeta = 3", r"unknown key optim.beta; did you mean optim.betas\?"),
        ('steps = "3"', "steps = '3' must be an integer"),
        ("steps = 3.5", "steps = 3.5 must be an integer"),
        ("steps = true", "steps = True must be an integer"),
        ("amp = 1", "amp = 1 must be true or false"),
        ("kind = 'medium'", "kind = 'medium' must be one of 'fast', 'slow'"),
        ("names = 'x'", "names = 'x' must be a list"),
        ("names = ['x', 3]", r"names\[1\] = 3 must be a string"),
        ("limit = 'none'", "limit = 'none' must be an integer"),
        ("weights = {web = 'much'}", "weights.web = 'much' must be a finite number"),
        ("[optim]\nlr = inf", "optim.lr = inf must be a finite number"),
        ("[optim]\nbetas = [0.9]", r"optim.betas = \[0.9\] must be a list of 2 values"),
        ("[optim]\nlr = -1", "lr = -1.0 must be above 0"),
        ("optim = 3", "optim must be a table, not 3"),
        ("steps = ", "is not valid TOML"),
        ("extends = 3", "extends = 3 must be a string or a list"),
    ],
)
def test_what_does_not_fit_names_the_file_the_key_and_the_value(recipe, text, message):
    with pytest.raises(ConfigError, match=rf"run\.toml.*{message}"):
        run([recipe(f'out = "a"\n{text}\n')])


def test_files_that_cannot_be_read(recipe, tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the recipe .*none.toml: No such file"):
        run([str(tmp_path / "none.toml")])
    with pytest.raises(ConfigError, match=r"run.json is not valid JSON"):
        run([recipe("{", "run.json")])
    with pytest.raises(ConfigError, match=r"run.json must hold a table, not \[1\]"):
        run([recipe("[1]", "run.json")])
    with pytest.raises(ConfigError, match=r"cannot read the recipe .*: Is a directory; name a .toml file"):
        run([str(tmp_path)])
    with pytest.raises(ConfigError, match=r"cannot read the recipe .*base.toml"):
        run([recipe('extends = "base.toml"')])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], r"tool run needs a recipe \(a .toml file\) or the flags --out"),
        (["--steps", "3"], "needs a recipe .* the flags --out"),
        (["--stepz", "3"], r"unknown flag --stepz; did you mean --steps\? \('tool run --help' lists the flags\)"),
        (["--lr", "3"], r"unknown flag --lr; did you mean --optim.lr\?"),
        (["--optim.learning", "3"], "unknown flag --optim.learning; did you mean --optim.lr"),
        (["--optim", "3"], "unknown flag --optim; it is a table, whose fields are --optim.lr, --optim.betas"),
        (["--steps.0.x", "3"], "unknown flag --steps.0.x"),
        (["--steps", "many"], "--steps = 'many' must be an integer"),
        (["--steps="], "--steps = '' must be an integer"),
        (["--steps"], "--steps takes one value, and has none"),
        (["--out", "a", "run.toml"], "--out takes one value, not 'a', 'run.toml'; a recipe comes before the flags"),
        (["--out", "a", "--steps", "1", "--steps=2"], "--steps is given twice"),
        (["--kind", "medium"], "--kind = 'medium' must be one of 'fast', 'slow'"),
        (["--amp", "maybe"], "--amp = 'maybe' must be true or false"),
        (["--optim.betas", "0.5"], r"--optim.betas = \[0.5\] must be a list of 2 values"),
        (["--weights", "web"], "--weights takes a value in TOML, such as '{name = \"…\"}', not 'web'"),
        (["--out", "a", "--optim.lr", "-1"], "tool run: lr = -1.0 must be above 0"),
        (["-s", "3"], "'-s' is not a flag"),
        (["--frobnicate", "3"], "unknown flag --frobnicate; look for it in the help"),
    ],
)
def test_wrong_flags_are_one_line(args, message, capsys):
    with pytest.raises(ConfigError, match=message) as caught:
        run(args)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().err == ""


def test_flags_of_every_type():
    flags = ["--out=", "--limit", "none", "--amp", "--optim.lr", "-0", "--weights", "{web = 2, books = 0.5}", "--names"]
    with pytest.raises(ConfigError, match=r"lr = -0\.0 must be above 0"):
        run(flags)
    flags[5] = "2"
    assert run(flags) == Run(out="", amp=True, weights={"web": 2.0, "books": 0.5}, optim=Optim(lr=2.0))


@dataclass(frozen=True, kw_only=True)
class Task:
    root: str
    """folder"""
    batch_size: int = 8
    """rows"""


@dataclass(frozen=True, kw_only=True)
class Job:
    task: Task
    """a table that must be there"""
    tasks: tuple[Task, ...]
    """a list of tables"""
    extra: Task | None = None
    """a table that may be there"""


def job(*args: str) -> Job:
    return parse(Job, args, prog="tool job", description="a job")


def test_tables_and_lists_of_tables_can_be_given_by_flags_alone(recipe):
    wanted = Job(task=Task(root="a"), tasks=(Task(root="b", batch_size=2), Task(root="c")))
    rows = '[{root = "b", batch_size = 2}, {root = "c"}]'
    assert job("--task.root", "a", "--tasks", rows) == wanted
    assert job("--task.root", "a", "--tasks.0.root", "b", "--tasks.0.batch-size=2", "--tasks.1.root", "c") == wanted
    assert job("--task.root", "a", "--tasks=[]", "--extra.root", "d").extra == Task(root="d")
    file = recipe('[[tasks]]\nroot = "x"\nbatch_size = 2\n[[tasks]]\nroot = "c"')
    assert job(file, "--task.root", "a", "--tasks.0.root", "b") == wanted


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "tool job needs a recipe .* or the flags --task.root --tasks$"),
        (["--task.batch-size", "3", "--tasks", "[]"], "or the flags --task.root$"),
        (["--tasks", "b"], r"--tasks takes a value in TOML, such as '\[{root = \"…\"}\]', not 'b'"),
        (["--tasks", "[3]"], r"--tasks\[0\] must be a table, not 3"),
        (["--tasks", "[{rood = 'b'}]"], r"unknown key --tasks\[0\].rood; did you mean --tasks\[0\].root\?"),
        (["--tasks.0.rood", "b"], r"unknown flag --tasks.0.rood; did you mean --tasks.0.root\?"),
        (["--tasks.1.root", "b"], "unknown flag --tasks.1.root; there are 0 tasks, the next one is --tasks.0 "),
        (["--extra.batch-size", "3", "--task.root", "a", "--tasks", "[]"], "or the flags --extra.root$"),
        (["--tasks.0.root", "b", "--tasks", "[]"], "--tasks.0.root and --tasks set the same value: give one of them"),
        (["--tasks", "[]", "--tasks.0.batch-size=2"], "--tasks and --tasks.0.batch-size set the same value"),
    ],
)
def test_wrong_tables_are_one_line(args, message):
    with pytest.raises(ConfigError, match=message):
        job(*args)


def test_a_key_that_a_json_recipe_has_twice_is_refused(recipe):
    with pytest.raises(ConfigError, match=r"run\.json is not valid JSON: the key 'lr' occurs twice in an object"):
        run([recipe('{"out": "a", "optim": {"lr": 1, "lr": 2}}', "run.json")])


def test_a_scalar_where_the_flags_need_a_table(recipe):
    with pytest.raises(ConfigError, match=r"--task\.root: the recipe has task = 3, which must be a table"):
        job(recipe("task = 3"), "--task.root", "a")
    with pytest.raises(
        ConfigError, match=r"--tasks\.0\.root: the recipe has tasks = 3, which must be a list of tables"
    ):
        job(recipe("tasks = 3"), "--tasks.0.root", "a")
    with pytest.raises(ConfigError, match=r"run.toml: missing keys task.root, tasks"):
        job(recipe(""))


def test_the_help_shows_lists_of_tables(capsys):
    with pytest.raises(SystemExit) as stop:
        job("--help")
    assert not stop.value.code
    shown = capsys.readouterr().out
    assert "--tasks '[{root = \"…\"}]'" in shown


def test_a_resolved_config_runs_again(tmp_path):
    config = Run(out="a", limit=7, names=("x",), weights={"web": 1.5}, optim=Optim(lr=0.1))
    file = tmp_path / "config.json"
    file.write_text(json.dumps(resolved(config)))
    assert run([str(file)]) == config
    assert load_file(file) == to_dict(config)
    assert json.loads(file.read_text())["fingerprint"] == fingerprint(config)


def test_fingerprints_depend_on_values_only():
    one = fingerprint({"b": 1, "a": [1.5, "ä", None]})
    assert one == fingerprint({"a": (1.5, "ä", None), "b": 1})
    assert one != fingerprint({"b": 1, "a": [1.5, "a", None]})
    assert len(one) == 32
    assert fingerprint(Run(out="a")) == fingerprint(from_dict(Run, {"out": "a"}))
    with pytest.raises(ConfigError, match="nan is not allowed in a configuration"):
        fingerprint({"lr": float("nan")})


@dataclass(frozen=True, kw_only=True)
class Trial:
    optim: Optim
    """a table whose fields have defaults"""


def test_a_required_table_whose_fields_have_defaults_may_be_absent():
    assert from_dict(Trial, {}) == parse(Trial, [], prog="try", description="") == Trial(optim=Optim())


def test_the_first_difference_in_words():
    assert difference(to_dict(Run(out="a")), to_dict(Run(out="a", optim=Optim(lr=1.0)))) == (
        "optim.lr is 0.001 there and 1.0 now"
    )


def test_an_output_folder_belongs_to_one_config(tmp_path):
    store = Store(tmp_path / "out")
    claim(store, Run(out="a"))
    claim(store, Run(out="a"))
    with pytest.raises(ConfigError, match="holds another run: steps is 10 there and 11 now"):
        claim(store, Run(out="a", steps=11))
    claim(store, Run(out="a", steps=11), free=("steps",))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        claim(Store(tmp_path / "foreign"), Run(out="a"))


class OtherError(ClipError):
    pass


@pytest.mark.parametrize(
    ("result", "code", "line"),
    [
        (None, 0, ""),
        (3, 3, ""),
        (ClipError("no column 'x'"), 2, "error: no column 'x'\n"),
        (OtherError("no model"), 2, "error: no model\n"),
        (KeyboardInterrupt(), 130, "interrupted: run the same command again to continue\n"),
    ],
)
def test_entry_points_end_with_one_line_and_a_code(result, code, line, capsys):
    def main() -> int | None:
        if isinstance(result, BaseException):
            raise result
        return result

    with pytest.raises(SystemExit) as stop:
        run_cli(main)
    assert (stop.value.code, capsys.readouterr().err) == (code, line)


def test_an_error_of_no_family_is_not_swallowed():
    def main() -> None:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        run_cli(main)


def test_equal_configs_have_equal_fingerprints():
    assert fingerprint({"epochs": 1, "list": [2]}) == fingerprint({"list": [2.0], "epochs": 1.0})
    assert fingerprint({"epochs": 1}) != fingerprint({"epochs": 1.5})
    assert fingerprint({"flag": True}) != fingerprint({"flag": 1})


@dataclass(frozen=True, kw_only=True)
class Mixed:
    size: int | tuple[int, int] = 1
    extra: dict[str, Any] = field(default_factory=dict)


def test_a_field_takes_one_of_several_types_and_any_values():
    data = {"size": [2, 3], "extra": {"a": None, "b": [1, {"c": "d"}]}}
    assert from_dict(Mixed, data) == Mixed(size=(2, 3), extra=data["extra"])
    assert to_dict(from_dict(Mixed, data)) == data
    with pytest.raises(ConfigError, match="size = 'big' must be an integer or a list of 2 values"):
        from_dict(Mixed, {"size": "big"})
