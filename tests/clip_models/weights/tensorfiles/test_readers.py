import io
import json
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from clip_models import ClipModelsError
from clip_models.weights.tensorfiles import digest, read_tensors, write_safetensors

STATE = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)}


def refusal(path) -> str:
    """The one line that the file is refused with."""
    with pytest.raises(ClipModelsError) as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_state(tensors):
    assert tensors.keys() == STATE.keys()
    assert all(torch.equal(tensors[name], STATE[name]) and tensors[name].dtype == STATE[name].dtype for name in STATE)


def test_integers_are_written_and_digested(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", STATE, {"k": "v"})
    tensors, metadata = read_tensors(tmp_path / "x.safetensors")
    assert_state(tensors)
    assert metadata == {"k": "v"}
    assert digest(tensors) != digest({**STATE, "b": torch.tensor(3, dtype=torch.int32)})


def sharded(folder, **changes):
    save_file({"a": STATE["a"]}, folder / "m-1.safetensors")
    save_file({"b": STATE["b"]}, folder / "m-2.safetensors")
    places = {"a": "m-1.safetensors", "b": "m-2.safetensors"} | changes
    (folder / "m.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder / "m.safetensors.index.json"


def test_shards_are_read_as_one(tmp_path):
    assert_state(read_tensors(sharded(tmp_path))[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"b": "m-3.safetensors"}, "lists m-3.safetensors, which is missing; fetch all 2 parts"),
        ({"b": "../m-2.safetensors"}, "lists '../m-2.safetensors', which is not the name of a weights file beside it"),
        ({"b": "m.safetensors.index.json"}, "is not the name of a weights file beside it"),
        ({"c": "m-2.safetensors"}, "and its index differ in 1 tensors (c, …)"),
        ({"b": 3}, "is not an index of weights files"),
    ],
)
def test_wrong_indices(tmp_path, changes, message):
    assert message in refusal(sharded(tmp_path, **changes))


def test_an_index_that_is_no_index(tmp_path):
    for number, text in enumerate(["x", "[]", '{"weight_map": []}']):
        path = tmp_path / f"{number}.index.json"
        path.write_text(text)
        assert "is not an index of weights files" in refusal(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_numpy_archives(tmp_path, save):
    fortran = np.asfortranarray(np.arange(12.0, dtype=np.float32).reshape(3, 4))
    bfloat = np.array([0x3F80, 0xC000], dtype=np.uint16).view("V2")
    save(tmp_path / "x.npz", **{"x/f": fortran, "d": np.float64(0.5), "h": np.ones(3, np.float16), "v": bfloat})
    tensors, metadata = read_tensors(tmp_path / "x.npz")
    assert metadata == {}
    assert torch.equal(tensors["x/f"], torch.arange(12.0).reshape(3, 4))
    assert tensors["x/f"].is_contiguous()
    assert (tensors["d"].dtype, tensors["d"].item()) == (torch.float32, 0.5)
    assert tensors["h"].dtype == torch.float16
    assert torch.equal(tensors["v"], torch.tensor([1.0, -2.0], dtype=torch.bfloat16))


def zip_with(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


def npy_header(shape, dtype="<f4"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def test_bad_numpy_archives(tmp_path):
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    assert "holds Python objects, which are never unpickled" in refusal(tmp_path / "objects.npz")
    huge = zip_with(tmp_path / "huge.npz", x=npy_header((1 << 50,)) + b"1234")
    assert "x.npy declares [1125899906842624] float32, which is more than it holds" in refusal(huge)
    bomb = zip_with(tmp_path / "bomb.npz", x=npy_header((1 << 23,)) + bytes(1 << 25))
    assert f"would unpack to {(1 << 25) + 128} bytes" in refusal(bomb)
    assert "is truncated or corrupted" in refusal(zip_with(tmp_path / "text.npz", x=b"hello"))
    assert "is of type <U1" in refusal(zip_with(tmp_path / "words.npz", x=npy_header((1,), "<U1") + b"abcd"))
    np.savez(tmp_path / "whole.npz", x=np.arange(1000))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:-300])
    assert "cut.npz is truncated or corrupted" in refusal(tmp_path / "cut.npz")
    np.savez(tmp_path / "none.npz")
    assert "holds no arrays" in refusal(tmp_path / "none.npz")


@pytest.mark.parametrize("is_zip", [True, False])
def test_entries_of_a_checkpoint_have_dotted_names(tmp_path, is_zip):
    content = {
        "epoch": 3,
        "model": {"state_dict": STATE},
        "optimizer": {"state": {0: {"m": torch.ones(1)}}, "groups": []},
    }
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=is_zip)
    found, metadata = read_tensors(tmp_path / "x.pt")
    assert metadata == {}
    assert list(found) == [
        "epoch",
        "model.state_dict.a",
        "model.state_dict.b",
        "optimizer.state.0.m",
        "optimizer.groups",
    ]
    assert_state({name: found[f"model.state_dict.{name}"] for name in STATE})


def test_tables_that_hold_one_another_are_read_once(tmp_path):
    table = {"a": STATE["a"]}
    table["itself"] = table
    for _ in range(40):  # 2^40 entries, if each path were followed
        table = {"x": table, "y": table}
    torch.save(table, tmp_path / "x.pt")
    assert len(read_tensors(tmp_path / "x.pt")[0]) < 10
    torch.save({"a": {"b": STATE["a"]}, "a.b": STATE["a"]}, tmp_path / "twice.pt")
    assert "holds a.b twice" in refusal(tmp_path / "twice.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_is_sent_elsewhere(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "x.pt")
    message = refusal(tmp_path / "x.pt")
    assert "is a TorchScript archive, which holds code and is not loaded" in message
    assert 'the pretrained tag "openai"' in message
    assert "torch.jit.load(file).state_dict()" in message


def test_what_declares_more_than_it_holds(tmp_path):
    torch.save({"a": torch.zeros(1).expand(1 << 40)}, tmp_path / "strides.pt")
    assert "declares a as [1099511627776], which is more than it holds" in refusal(tmp_path / "strides.pt")
    torch.save({"a": torch.empty(1 << 40, device="meta")}, tmp_path / "meta.pt")
    assert "holds a as torch.strided on meta" in refusal(tmp_path / "meta.pt")
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "sparse.pt")
    assert "weights are plain tensors" in refusal(tmp_path / "sparse.pt")


def test_a_bit_that_flipped_in_a_tensor_is_damage(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"a": torch.arange(1000.0)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(torch.arange(1000.0).numpy().tobytes()) + 2000] ^= 1
    path.write_bytes(data)
    with pytest.raises(ClipModelsError, match=r"x.pt is damaged: x/data/0 does not have its CRC-32"):
        read_tensors(path)


def test_a_compressed_checkpoint_is_a_bomb(tmp_path):
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "x.pt")
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as source,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
    assert "checkpoints are not compressed, so this file is refused" in refusal(tmp_path / "bomb.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "x.pt").read_bytes()[:5000])
    assert "cut.pt is damaged" in refusal(tmp_path / "cut.pt")


def test_the_content_decides_how_a_file_is_read(tmp_path):
    save_file(STATE, tmp_path / "x.bin")
    np.savez(tmp_path / "x.npz", a=STATE["a"].numpy(), b=STATE["b"].numpy())
    (tmp_path / "x.npz").rename(tmp_path / "x.ckpt")
    torch.save(STATE, tmp_path / "x.safetensors")
    for name in ("x.bin", "x.ckpt"):
        assert_state(read_tensors(tmp_path / name)[0])
    assert "is a PyTorch checkpoint, not .safetensors; name it .pt" in refusal(tmp_path / "x.safetensors")


def test_extensions(tmp_path):
    (tmp_path / "x.h5").write_bytes(b"\x01\x00\x02")
    message = refusal(tmp_path / "x.h5")
    assert "has the extension '.h5'; weights are read from .safetensors, .index.json, .npz, .pt" in message
    assert "there is no weights file" in refusal(tmp_path)
