"""One wording for names that do not exist, one family of errors, one hash."""

import hashlib

import pytest

from clip_core import ClipError
from clip_core.files import sha256_of, sync
from clip_core.suggest import did_you_mean


def test_the_nearest_names_are_offered():
    known = ("width", "height", "weight")
    assert did_you_mean("widht", known) == "did you mean width?"
    assert did_you_mean("hight", known, most=2, spell=repr) == "did you mean 'height' or 'weight'?"
    assert did_you_mean("colour", known, "see the list") == "see the list"
    assert did_you_mean("colour", known) == ""
    assert did_you_mean(7, iter(["70"]), cutoff=0.5) == "did you mean 70?"  # a key of a JSON table may be anything


@pytest.mark.parametrize("package", ["data", "eval", "models", "train"])
def test_each_package_s_errors_are_of_the_one_family(package):
    module = __import__(f"clip_{package}.errors", fromlist=["errors"])
    error = getattr(module, f"Clip{package.title()}Error")
    assert issubclass(error, ClipError)
    assert issubclass(error, ValueError)


def test_a_file_is_hashed_and_synced(tmp_path):
    (tmp_path / "x").write_bytes(b"abc" * 1000)
    assert sha256_of(tmp_path / "x") == hashlib.sha256(b"abc" * 1000).hexdigest()
    sync(tmp_path / "x")
    sync(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "y")
