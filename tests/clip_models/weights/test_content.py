"""What lies where weights should be is named for what it is, by every reader."""

import gzip
import io
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save

from clip_models import ClipModelsError, create_model
from clip_models.weights.content import inspect
from clip_models.weights.load import load_model
from clip_models.weights.tensorfiles import read_names, read_tensors
from clip_models.weights.towers import load_tower

LFS = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 605143884\n"
)  # 133 bytes, the first of them those of a plausible pickle or header to nobody


def torch_file(**options):
    file = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, file, **options)
    return file.getvalue()


def zipped(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def tarred():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo("model.pt")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    return file.getvalue()


def npy():
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


FOREIGN = {
    "nothing": (b"", "empty (0 bytes)"),
    "lfs": (LFS, "a Git LFS pointer to 605143884 bytes and not the file itself; run 'git lfs pull'"),
    "annex": (b"/annex/objects/MD5E-s1--abc.bin\n", "a Git LFS pointer and not the file itself"),
    "html": (
        b"\xef\xbb\xbf\n<!-- a --><!-- b -->\n<HTML><head><title> 404 Not\nFound</title>",
        "an HTML page (404 Not Found)",
    ),
    "doctype": (b"<!DOCTYPE html>\n<p>Sign in", "an HTML page (<!DOCTYPE html> <p>Sign in)"),
    "s3": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML document (AccessDenied)"),
    "json": (b'{"error": "Repository not found"}', 'JSON ({"error": "Repository not found"})'),
    "text": ("Entry not found, \u00e9".encode(), "text (Entry not found"),
    "gzip": (gzip.compress(b"x", mtime=0), "a gzip archive; unpack it"),
    "tar": (tarred(), "a tar archive; unpack it"),
    "zip": (zipped(readme="x", model="y"), "a zip archive without weights of PyTorch or NumPy (in it: model, readme)"),
    "gguf": (b"GGUF\x03\0\0\0", "a GGUF model"),
    "tflite": (b"\x1c\0\0\0TFL3\0\0", "a TensorFlow Lite model"),
    "onnx": (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0", "an ONNX graph"),
    "hdf5": (b"\x89HDF\r\n\x1a\n\0\0", "an HDF5 file"),
    "npy": (npy(), "a single NumPy array"),
    "zeros": (bytes(5000), "begins with zeros"),
    "pickle": (b"\x80\x04}\x94.", "a pickle that torch.save did not write"),
}


@pytest.mark.parametrize(("body", "what"), FOREIGN.values(), ids=FOREIGN)
def test_foreign_files_are_named_by_every_reader(tmp_path, tiny, body, what):
    for suffix in (".safetensors", ".pt", ".bin", ".npz", ".ckpt"):
        path = tmp_path / f"model{suffix}"
        path.write_bytes(body)
        assert what in inspect(path).foreign
        for read in (read_tensors, read_names, load_model, lambda path: load_tower(tiny, "image", path)):
            with pytest.raises(ClipModelsError, match=r"model\.") as caught:
                read(path)
            assert f"{path} is " in str(caught.value)
            assert what in str(caught.value)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["x.pb", "x.pdparams", "x.msgpack", "x.data-00000-of-00001", "m.ckpt-5.index", "x.onnx", "x.ckpt.meta"]
)
def test_formats_without_a_mark_are_known_by_their_names(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x01\x00\x02")
    assert "convert it to safetensors" in inspect(tmp_path / name).foreign
    with pytest.raises(ClipModelsError, match="convert it to safetensors"):
        create_model("ViT-Ti-4-24", f"file://{tmp_path / name}")


def test_an_index_is_json_but_no_page(tmp_path):
    (tmp_path / "m.safetensors.index.json").write_bytes(LFS)
    with pytest.raises(ClipModelsError, match="is a Git LFS pointer"):
        read_tensors(tmp_path / "m.safetensors.index.json")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (torch_file(), "torch"),
        (torch_file(_use_new_zipfile_serialization=False), "torch"),
        (torch_file()[:-100], ""),
        (save({"a": torch.zeros(3)}), "safetensors"),
        (save({"a" * 115: torch.zeros(3)}), "safetensors"),  # a header whose length is an ASCII letter
        (b"\x01\x00\x07\x08", ""),
    ],
)
def test_weights_and_the_unknown_are_not_foreign(tmp_path, body, expected):
    (tmp_path / "x").write_bytes(body)
    assert inspect(tmp_path / "x") == (expected, "")
