"""Training checkpoints with more than tensors in them: read, and nothing in them is run, imported or built."""

import argparse
import collections
import datetime
import os
import pathlib
import pickle
import sys
import types
from functools import partial

import numpy as np
import pytest
import torch

from clip_models import ClipModelsError, create_model
from clip_models.convert.prefixes import plain_names
from clip_models.tensorfiles import read_tensors
from clip_models.tensorfiles.pickles import describe

NAME = "ViT-Ti-4-24"
FORMATS = pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])


def save(path, content, is_zip=True):
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    return path


def refusal(call) -> str:
    with pytest.raises(ClipModelsError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Calls:
    """Pickled as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def foreign_class(name, base=object):
    """A class of a package that is gone when the file is read."""
    package, _, name = name.rpartition(".")
    module = types.ModuleType(package)
    made = type(name, (base,), {"__module__": package, "__qualname__": name})
    setattr(module, name, made)
    return module, made


EXTRAS = {
    "numpy scalar": np.float64(0.5),
    "numpy integer": np.int64(3),
    "numpy array": np.arange(6, dtype=np.float32).reshape(2, 3),
    "array of objects": np.array([{"a": 1}, None], dtype=object),
    "empty array": np.zeros((0, 3)),
    "dtype": np.dtype("float32"),
    "numpy generator": np.random.RandomState(0),
    "new numpy generator": np.random.default_rng(0),
    "numpy state": np.random.RandomState(0).get_state(),
    "namespace": argparse.Namespace(lr=1e-3, name="x", betas=(0.9, 0.98), out=pathlib.Path("/x")),
    "nested namespace": argparse.Namespace(inner=argparse.Namespace(lr=np.float32(1))),
    "simple namespace": types.SimpleNamespace(a=1),
    "path": pathlib.Path("/data/laion"),
    "default dict": collections.defaultdict(list, a=[1]),
    "counter": collections.Counter("abc"),
    "deque": collections.deque([1, 2], maxlen=3),
    "date": datetime.datetime(2022, 9, 15, tzinfo=datetime.UTC),
    "class": torch.optim.AdamW,
    "partial": partial(torch.optim.AdamW, lr=1e-3),
    "counts": {"epoch": 32, "global_step": 10**12, "big": 2**70, "none": None, "set": {1}, "bytes": b"x" * 300},
}


@FORMATS
@pytest.mark.parametrize("extra", EXTRAS.values(), ids=EXTRAS)
def test_checkpoints_with_other_objects_give_their_weights(tmp_path, extra, is_zip):
    state = {"visual.proj": torch.rand(3, 2), "ln_final.bias": torch.rand(5)}
    path = save(tmp_path / "x.pt", {"epoch": 32, "extra": extra, "extras": [extra], "state_dict": state}, is_zip)
    with pytest.warns(UserWarning, match=r"left out \(\d\): .*extra"):
        found = plain_names(read_tensors(path)[0], "x.pt")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_a_checkpoint_with_all_of_them_is_a_model(tiny, tmp_path):
    path = save(tmp_path / "x.pt", {"state_dict": tiny.state_dict(), "extras": EXTRAS})
    with pytest.warns(UserWarning, match=r"left out \(27\): extras"):
        model = create_model(NAME, path)
    assert all(torch.equal(tensor, tiny.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_old_names_of_numpy(tmp_path):
    """Files of NumPy 1 say numpy.core where those of NumPy 2 say numpy._core."""
    path = save(tmp_path / "x.pt", {"a": np.float32(0.5)}, is_zip=False)
    old = path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != path.read_bytes()
    path.write_bytes(old)
    assert read_tensors(path)[0]["a"].item() == 0.5


@FORMATS
def test_arrays_and_scalars_of_numpy_are_tensors(tmp_path, is_zip):
    arrays = {
        "f": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "big": np.arange(3, dtype=">f8"),
        "h": np.ones(2, np.float16),
        "i": np.arange(3),
        "b": np.array([True, False]),
        "s": np.float32(0.5),
        "empty": np.zeros((0, 2), np.float32),
    }
    found, _ = read_tensors(save(tmp_path / "x.pt", arrays, is_zip))
    for name, array in arrays.items():
        expected = torch.from_numpy(np.array(array, dtype=np.dtype(array.dtype).newbyteorder("=")))
        assert found[name].dtype == expected.dtype
        assert torch.equal(found[name], expected)
    found, _ = read_tensors(save(tmp_path / "o.pt", {"o": np.array([{}], dtype=object), "u": np.array("word")}, is_zip))
    assert [describe(value).rpartition(".")[2] for value in found.values()] == ["_reconstruct", "_reconstruct"]


def test_an_array_that_declares_more_than_it_holds_is_not_built(tmp_path):
    path = save(tmp_path / "x.pt", {"a": np.zeros((2, 4), np.int8)}, is_zip=False)
    assert path.read_bytes().count(b"K\x02K\x04\x86") == 1
    path.write_bytes(path.read_bytes().replace(b"K\x02K\x04\x86", b"K\xffK\xff\x86"))
    assert describe(read_tensors(path)[0]["a"]).endswith("_reconstruct")


@FORMATS
@pytest.mark.parametrize("base", [object, dict])
def test_classes_of_packages_that_are_not_there(tiny, tmp_path, monkeypatch, base, is_zip):
    module, made = foreign_class(f"gone_with_{base.__name__}.ConfigDict", base)
    value = made()
    if base is dict:
        value["lr"] = 1
    value.name = "x"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        path = save(tmp_path / "x.pt", {"model": tiny.state_dict(), "config": value}, is_zip)
    with pytest.warns(UserWarning, match="config"):
        assert torch.equal(create_model(NAME, path).visual.proj, tiny.visual.proj)
    assert module.__name__ not in sys.modules


ATTACKS = {
    "system": (lambda fuse: Calls(os.system, f"touch {fuse}"), "system"),
    "touch": (lambda fuse: Calls(pathlib.Path.touch, fuse), "holds getattr"),
    "exec": (lambda fuse: Calls(exec, f"open({str(fuse)!r}, 'w')"), "holds exec"),
    "open": (lambda fuse: Calls(open, str(fuse), "w"), "holds _io.open|holds io.open"),
    "numpy": (lambda fuse: Calls(np.save, str(fuse), 1), "holds numpy.save"),
    "torch": (lambda fuse: Calls(torch.save, 1, str(fuse)), "holds torch.serialization.save"),
    "state": (lambda fuse: argparse.Namespace(a=[Calls(exec, f"open({str(fuse)!r}, 'w')")]), "holds exec"),
    "partial": (lambda fuse: partial(exec, f"open({str(fuse)!r}, 'w')"), "holds exec"),
    "array": (lambda fuse: np.array([Calls(exec, f"open({str(fuse)!r}, 'w')")], dtype=object), "holds exec"),
}


@FORMATS
@pytest.mark.parametrize(("attack", "message"), ATTACKS.values(), ids=ATTACKS)
def test_what_attacks_are_made_of_is_refused_by_name(tiny, tmp_path, attack, message, is_zip):
    fuse = tmp_path / "exploded"
    content = {"epoch": np.int64(1), "state_dict": tiny.state_dict(), "args": attack(fuse)}
    path = save(tmp_path / "x.pt", content, is_zip)
    fuse.unlink(missing_ok=True)
    with pytest.raises(ClipModelsError, match=message) as caught:
        create_model(NAME, path)
    assert "never unpickled; save its state dict alone" in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert not fuse.exists()


FUSE = []


def explode():
    FUSE.append("exploded")


@FORMATS
def test_functions_of_other_packages_are_named_and_not_called(tiny, tmp_path, is_zip):
    path = save(tmp_path / "x.pt", {"state_dict": tiny.state_dict(), "args": Calls(explode)}, is_zip)
    with pytest.warns(UserWarning, match="args"):
        create_model(NAME, path)
    assert FUSE == []
    save(path, {"state_dict": {**tiny.state_dict(), "logit_scale": Calls(explode)}}, is_zip)
    assert "logit_scale as " in refusal(lambda: create_model(NAME, path))
    assert "explode; weights are tensors" in refusal(lambda: create_model(NAME, path))
    assert FUSE == []
    torch.load(path, weights_only=False)
    assert FUSE == ["exploded"]  # the trap was armed
    FUSE.clear()


def test_reading_leaves_torchs_own_list_as_it_was(tmp_path):
    before = set(torch.serialization.get_safe_globals())  # other libraries add to it
    path = save(tmp_path / "x.pt", {"a": argparse.Namespace(b=1)})
    read_tensors(path)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
