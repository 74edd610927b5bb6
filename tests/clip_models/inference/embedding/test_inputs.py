"""clip_models.inference.embedding.inputs and .tables: what is found, under which keys, in which order."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clip_models import ClipModelsError
from clip_models.inference.embedding.config import EmbedConfig
from clip_models.inference.embedding.inputs import open_source
from clip_models.inference.embedding.samples import Unused
from tests.support import embeddings
from tests.support.embeddings import caption, image_bytes


def called(value):
    return value() if callable(value) else value


def samples(source, needs=lambda first, stop: True, **options):
    """[(key, image, caption)], each read before the next is asked for."""
    found = []
    for sample in open_source(source, EmbedConfig(**options), needs):
        if isinstance(sample, Unused):
            continue
        image, text = called(sample.image), called(sample.text)
        if isinstance(image, str):
            with open(image, "rb") as file:
                image = file.read()
        found.append((sample.key, image, text.decode() if isinstance(text, bytes) else text))
    return found


def unused(source, **options):
    """[(name within the source, reason)]"""
    found = [item for item in open_source(source, EmbedConfig(**options), lambda first, stop: True)]
    return [(os.path.relpath(item.name, source), item.reason) for item in found if isinstance(item, Unused)]


def test_a_folder_and_those_below_it(tmp_path):
    embeddings.folder(tmp_path / "f", 9)
    (tmp_path / "f" / "notes.md").write_text("no picture")
    (tmp_path / "f" / "00" / "LOUD.JPG").write_bytes(image_bytes(50))
    found = samples(tmp_path / "f")
    assert [key for key, _, _ in found] == [
        "00/0000.jpg", "00/0001.png", "00/0002.png", "00/0003.jpg", "00/LOUD.JPG",
        "01/0004.png", "01/0005.png", "01/0006.jpg", "01/0007.png", "02/0008.png",
    ]  # fmt: skip
    assert found[1][1] == image_bytes(1)
    assert found == samples(f"{tmp_path}/f/") == samples(f"file://{tmp_path}/f")


def test_a_folder_that_holds_a_link_to_itself_ends(tmp_path):
    embeddings.folder(tmp_path / "f", 2)
    (tmp_path / "f" / "00" / "again").symlink_to(tmp_path / "f")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.png").write_bytes(image_bytes(7))
    (tmp_path / "f" / "linked").symlink_to(tmp_path / "elsewhere")
    assert [key for key, _, _ in samples(tmp_path / "f")] == ["00/0000.jpg", "00/0001.png", "linked/x.png"]


def test_images_of_a_folder_with_their_captions(tmp_path):
    root = embeddings.folder(tmp_path / "f", 3, captions=True)
    assert [text for _, _, text in samples(root, what="both")] == [caption(number) for number in range(3)]
    assert samples(root, what="text")[0] == ("00/0000.txt", None, caption(0))


def test_what_a_folder_holds_besides_is_named(tmp_path):
    root = embeddings.folder(tmp_path / "f", 2, captions=True)
    for name in ("notes.md", "alone.txt", "sub/a.tar", "sub/b.parquet", "up/UPPER.PNG", "up/UPPER.TXT"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"UPPER")
    os.mkfifo(root / "pipe.jpg")
    (root / "broken.jpg").symlink_to("nowhere.jpg")
    odd = [
        ("notes.md", "not_asked"),
        ("pipe.jpg", "not_a_file"),
        ("sub/a.tar", "not_opened"),
        ("sub/b.parquet", "not_opened"),
    ]
    captions = [("00/0000.txt", "not_asked"), ("00/0001.txt", "not_asked"), ("alone.txt", "not_asked")]
    assert unused(root) == sorted([*captions, *odd, ("up/UPPER.TXT", "not_asked")])
    assert unused(root, what="both") == sorted([("alone.txt", "no_image"), *odd])
    assert samples(root / "up", what="both") == [("UPPER.PNG", b"UPPER", "UPPER")]
    listed = [item.key for item in open_source(root, EmbedConfig(), None) if not isinstance(item, Unused)]
    assert listed == ["00/0000.jpg", "00/0001.png", "broken.jpg", "up/UPPER.PNG"]


def test_files_beside_tars_are_named(tmp_path):
    embeddings.tar(tmp_path / "a.tar", [0])
    (tmp_path / "loose.jpg").write_bytes(image_bytes(1))
    (tmp_path / "more").mkdir()
    assert unused(tmp_path, what="both")[:2] == [("loose.jpg", "not_opened"), ("more", "not_opened")]


def test_captions_of_a_folder_in_other_files(tmp_path):
    (tmp_path / "1.png").write_bytes(image_bytes(1))
    (tmp_path / "1.cap").write_text("one")
    (tmp_path / "1.json").write_text('{"t": "one"}')
    assert samples(tmp_path, what="both", caption_member="cap")[0][2] == "one"
    assert samples(tmp_path, what="both", caption_field="t")[0][2] == '{"t": "one"}'
    assert samples(tmp_path, what="both")[0][2] is None


def test_options_of_other_sources_are_refused(tmp_path):
    (tmp_path / "captions.txt").write_text("a")
    embeddings.table(tmp_path / "a.parquet", range(2))
    embeddings.tar(tmp_path / "a.tar", range(2))
    (tmp_path / "folder").mkdir()
    options = {
        "tars and folders": {"image_member": "x", "caption_member": "x", "caption_field": "x"},
        "tables": {"image_column": "x", "text_column": "x", "key_column": "x"},
        "tars": {"key_ends": "last-dot"},
    }
    takers = {"a.tar": ("tars and folders", "tars"), "folder": ("tars and folders",), "a.parquet": ("tables",)}
    for source in ("captions.txt", "a.parquet", "a.tar", "folder", None):
        for kinds, values in options.items():
            for name, value in values.items():
                if kinds not in takers.get(source, ()):
                    with pytest.raises(ClipModelsError, match=f"embed: {name} '{value}' is for {kinds}, not for a"):
                        samples(tmp_path / source if source else ["a"], what="text", **{name: value})


def test_hidden_files_and_folders_are_named_and_not_used(tmp_path):
    for name in ("a.jpg", "._a.jpg", ".thumbs/b.jpg", "c/.d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(image_bytes(0))
    for what in ("image", "text", "both"):
        assert [key for key, _, _ in samples(tmp_path, what=what)] == ["a.jpg"] * (what != "text")
        hidden = [name for name, reason in unused(tmp_path, what=what) if reason == "hidden"]
        assert hidden == ["._a.jpg", ".thumbs", "c/.d.txt"]


def test_a_folder_with_braces_in_its_name(tmp_path):
    (tmp_path / "{a,b}").mkdir()
    (tmp_path / "{a,b}" / "1.jpg").write_bytes(image_bytes(0))
    assert [key for key, _, _ in samples(tmp_path / "{a,b}")] == ["1.jpg"]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_tars(tmp_path, mode):
    suffix = "tar" if mode == "w" else "tar.gz"
    embeddings.tar(tmp_path / f"001.{suffix}", range(3, 5), mode)
    embeddings.tar(tmp_path / f"000.{suffix}", range(3), mode)
    expected = [(f"{number:06}", image_bytes(number), caption(number)) for number in range(5)]
    for source in (
        tmp_path,
        f"{tmp_path}/*.{suffix}",
        f"{tmp_path}/00{{0,1}}.{suffix}",
        f"{tmp_path}/{{000..001}}.{suffix}",
    ):
        assert samples(source, what="both") == expected
    assert samples(tmp_path / f"000.{suffix}", what="image") == [(key, image, None) for key, image, _ in expected[:3]]
    assert samples(tmp_path, what="text") == [(key, None, text) for key, _, text in expected]


def test_headers_of_a_tar_are_not_kept(tmp_path):
    """Or a run over a large tar would hold all of them."""
    path = embeddings.tar(tmp_path / "a.tar", range(20))
    for sample in open_source(path, EmbedConfig(), lambda first, stop: True):
        if not isinstance(sample, Unused):
            assert len(sample.image.args[0].members) <= 1


def test_tables(tmp_path):
    path = embeddings.table(tmp_path / "a.parquet", range(12))
    expected = [(f"{number:06}", image_bytes(number), caption(number)) for number in range(12)]
    assert samples(path, what="both") == samples(tmp_path, what="both") == expected
    found = samples(path, needs=lambda first, stop: stop > 5)  # the first row group is done already
    assert [image for _, image, _ in found] == [None] * 5 + [image for _, image, _ in expected[5:]]
    assert [key for key, _, _ in found] == [key for key, _, _ in expected]


def test_columns_of_tables(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "1.png").write_bytes(image_bytes(1))
    columns = {
        "photo": ["pictures/1.png", str(tmp_path / "pictures" / "1.png")],
        "nested": [{"bytes": image_bytes(2), "path": None}, {"bytes": None, "path": "pictures/1.png"}],
        "words": ["one", None],
        "id": [17, None],
    }
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path)
    found = samples(path, what="both", image_column="photo", text_column="words", key_column="id")
    assert found == [("17", image_bytes(1), "one"), ("a.parquet#1", image_bytes(1), None)]
    found = samples(path, image_column="nested")
    assert found == [("a.parquet#0", image_bytes(2), None), ("a.parquet#1", image_bytes(1), None)]
    with pytest.raises(ClipModelsError, match="columns photo, nested, words, id; name one with --image-column"):
        samples(path)
    with pytest.raises(ClipModelsError, match="has no column 'wrods'; it has photo"):
        samples(path, what="text", text_column="wrods")
    pq.write_table(pa.table([[b"x"], [b"y"]], names=["image", "image"]), path)
    with pytest.raises(ClipModelsError, match="has more than one column 'image'"):
        samples(path)


def test_strings_of_tables_that_are_not_utf8(tmp_path):
    """They are a matter of their row."""
    data = [b"a cat", "ein Bär".encode("latin-1")]
    strings = pa.array(data, pa.binary()).view(pa.string())
    pq.write_table(pa.table({"caption": strings, "key": strings, "image": strings}), tmp_path / "a.parquet")
    found = list(open_source(tmp_path / "a.parquet", EmbedConfig(what="both"), lambda first, stop: True))
    assert [item.text for item in found] == data
    assert [item.key for item in found] == ["a cat", "ein B\udce4r"]
    assert found[1].image == f"{tmp_path}/ein B\udce4r"


def test_lists(tmp_path):
    (tmp_path / "1.png").write_bytes(image_bytes(1))
    paths, captions = tmp_path / "paths.txt", tmp_path / "captions.txt"
    paths.write_bytes(f"1.png\r\n\n{tmp_path}/1.png\n".encode())
    captions.write_bytes("first\n\nthïrd\r\n".encode())
    assert [(key, image) for key, image, _ in samples(paths)] == [
        ("1.png", image_bytes(1)), (f"{tmp_path}/1.png", image_bytes(1))
    ]  # fmt: skip
    assert [(key, text) for key, _, text in samples(captions, what="text")] == [
        ("1", "first"),
        ("2", ""),
        ("3", "thïrd"),
    ]
    with pytest.raises(ClipModelsError, match="has one item a line; for pairs"):
        samples(captions, what="both")
    blank = [item for item in open_source(paths, EmbedConfig(), None) if isinstance(item, Unused)]
    assert blank == [Unused(f"{paths}:2", "blank_line")]


def test_values_in_memory():
    image = Image.new("RGB", (4, 4))
    assert samples([b"a.png-bytes", image]) == [("0", b"a.png-bytes", None), ("1", image, None)]
    assert samples(iter(["x", "y"]), what="text") == [("0", None, "x"), ("1", None, "y")]
    assert samples([(b"i", "t")], what="both") == [("0", b"i", "t")]
    assert samples([{"key": "k", "image": b"i", "text": "t"}], what="both") == [("k", b"i", "t")]
    with pytest.raises(ClipModelsError, match="item 1 of the source is no pair"):
        samples([(b"i", "t"), "x"], what="both")


def test_what_is_no_source(tmp_path):
    (tmp_path / "model.bin").touch()
    embeddings.tar(tmp_path / "a.tar", [0])
    for source, message in (
        (tmp_path / "none", "none does not exist"),
        (f"{tmp_path}/*.parquet", "matches no file"),
        (tmp_path / "model.bin", "model.bin does not fit as a source"),
        (f"{tmp_path}/*", r"model.bin beside .*a.tar does not fit as a source"),
        ("nosuchscheme://x", "cannot be opened"),
        ("", "the source '' is empty"),
        ("s3://", "the source 's3://' is empty"),
        (f"zip://*.jpg::{tmp_path}/a.tar", "cannot be opened: File is not a zip file"),
        ("http://127.0.0.1:1/a.tar", "does not exist, or cannot be reached"),
        (17, "takes a path or an iterable, not int"),
    ):
        with pytest.raises(ClipModelsError, match=message):
            samples(source)


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "parquet"])
@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_damaged_files_are_named(tmp_path, kind, damage):
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        embeddings.table(path, range(9))
    else:
        embeddings.tar(path, range(9), "w:gz" if kind == "tar.gz" else "w")
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "other": os.urandom(3000)}[damage])
    with pytest.raises(ClipModelsError, match=rf"a.{kind} is damaged or no (tar|parquet file)"):
        samples(path, what="both")
