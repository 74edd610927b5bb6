"""Names of implementations: built-in ones load when asked for, a user's own are added or named by their module."""

import subprocess
import sys

import pytest

from clip_core import ClipError
from clip_core.registry import Registry


def make() -> Registry:
    return Registry("shape", {"square": "fractions:Fraction", "circle": "decimal:Decimal"})


def test_a_name_is_an_import_on_first_use():
    code = "import sys; from clip_core.registry import Registry; r = Registry('shape', {'big': 'decimal:Decimal'}); "
    code += "print('decimal' in sys.modules, r.get('big').__name__, 'decimal' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["False", "Decimal", "True"]


def test_one_s_own_is_added_or_named_by_its_module():
    shapes = make()

    @shapes.add("oval")
    class Oval:
        pass

    assert shapes.get("oval") is Oval
    assert list(shapes) == ["square", "circle", "oval"]
    assert shapes.get("collections:OrderedDict").__name__ == "OrderedDict"
    shapes.check("nowhere:Nothing")  # is not imported for it
    with pytest.raises(ClipError, match="there is a shape 'square' already"):
        shapes.add("square")(Oval)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sqare", "there is no shape 'sqare'; did you mean 'square'?"),
        ("x", "there is no shape 'x'; there are square, circle"),
        (":x", "there is no shape ':x'; there are square, circle"),
        ("nowhere:Nothing", "shape 'nowhere:Nothing' cannot be imported: No module named 'nowhere'; is it on"),
        ("decimal:Nothing", "shape 'decimal:Nothing' cannot be imported: module 'decimal' has no attribute 'Nothing'"),
    ],
)  # fmt: skip
def test_what_does_not_exist_is_one_line(name, message):
    with pytest.raises(ClipError) as caught:
        make().get(name)
    assert str(caught.value).startswith(message)


def test_a_broken_installation_is_not_the_user_s_mistake():
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        Registry("shape", {"square": "no_such_library:Square"}).get("square")
