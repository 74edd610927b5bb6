"""clip_models.inference.embedding.tars: which members make a sample, and that every other one is named."""

import io
import json
import random
import tarfile

import pytest

from clip_models import ClipModelsError
from clip_models.inference.embedding.config import EmbedConfig
from clip_models.inference.embedding.inputs import open_source
from clip_models.inference.embedding.samples import SampleError, Unused, read_caption
from tests.support.embeddings import image_bytes

FOLDER, SYMLINK, HARDLINK, PIPE = (
    kind.decode() for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE)
)
DATES = [f"IMG_2020.05.{day:02}.jpg" for day in range(1, 11)]


def write(path, members, mode="w"):
    """A tar of (name, bytes, or the type of a member without any); names alone hold their own name."""
    with tarfile.open(path, mode) as tar:
        for member in members:
            name, content = member if isinstance(member, tuple) else (member, member.encode())
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
            else:
                info.type, info.linkname = content.encode(), "elsewhere"
            tar.addfile(info, io.BytesIO(content if isinstance(content, bytes) else b""))
    return path


def read(path, **options):
    """({key: (image, caption)}, {key: code of its rejection}, {name in the tar: reason})"""
    good, bad, unused = {}, {}, {}
    for item in open_source(path, EmbedConfig(**options), lambda first, stop: True):
        if isinstance(item, Unused):
            assert item.name not in unused
            unused[item.name.removeprefix(f"{path}/")] = item.reason
        elif item.problem:
            assert item.key not in bad
            bad[item.key] = item.problem[0]
        else:
            assert item.key not in good
            good[item.key] = tuple(value and value() for value in (item.image, item.text))
    return good, bad, unused


@pytest.fixture(params=["tar", "tar.gz"])
def path(request, tmp_path):
    return tmp_path / f"a.{request.param}"


def make(path, members):
    return write(path, members, "w:gz" if path.suffix == ".gz" else "w")


def test_dates_in_names_are_ambiguous_by_webdatasets_rule(path):
    good, bad, unused = read(make(path, [*DATES, "x.jpg"]))
    assert good == {"x": (b"x.jpg", None)}
    assert bad == {"IMG_2020": "ambiguous_image"}
    assert unused == dict.fromkeys(DATES, "ambiguous_image")
    (item,) = (item for item in open_source(path, EmbedConfig(), None) if getattr(item, "problem", None))
    assert item.problem[1].startswith(
        "the key IMG_2020 has 10 members that may be meant (05.01.jpg, 05.02.jpg, 05.03.jpg, 05.04.jpg, 05.05.jpg,"
        " 05.06.jpg, …); name one with --image-member, or, if each is a sample of its own, use --key-ends last-dot"
    )


def test_keys_may_end_at_the_last_dot(path):
    members = [name for image in DATES for name in (image, image.replace(".jpg", ".txt"))]
    good, bad, unused = read(make(path, members), key_ends="last-dot", what="both")
    assert good == {name[:-4]: (name.encode(), name.replace(".jpg", ".txt").encode()) for name in DATES}
    assert (bad, unused) == ({}, {})


CASES = {
    "two_images": (["1.png", "1.jpg"], {}, {"1": b"1.jpg"}, {}, {"1.png": "other_image"}),
    "the_preferred_one": (
        ["1.png", "1.jpg"], {"image_member": "png;jpg"}, {"1": b"1.png"}, {}, {"1.jpg": "other_image"}
    ),
    "mask_first": (["1.seg.png", "1.jpg"], {}, {"1": b"1.jpg"}, {}, {"1.seg.png": "other_image"}),
    "mask_by_name": (
        ["1.jpg", "1.seg.png"], {"image_member": "seg.png"}, {"1": b"1.seg.png"}, {}, {"1.jpg": "not_asked"}
    ),
    "mask_and_dotted": (
        ["1.seg.png", "1.rgb.png"], {}, {}, {"1": "ambiguous_image"},
        {"1.seg.png": "ambiguous_image", "1.rgb.png": "ambiguous_image"},
    ),
    "one_dotted": (["1.rgb.png", "1.json"], {}, {"1": b"1.rgb.png"}, {}, {"1.json": "not_asked"}),
    "dotted_by_name": (
        ["1.a.png", "1.b.png"], {"image_member": ".B.PNG"}, {"1": b"1.b.png"}, {}, {"1.a.png": "not_asked"}
    ),
    "a_name_that_is_not_there": (["1.png"], {"image_member": "rgb.png"}, {}, {"1": "no_image"}, {"1.png": "no_image"}),
    "upper_case": (["1.JPG", "2.Png"], {}, {"1": b"1.JPG", "2": b"2.Png"}, {}, {}),
    "not_adjacent": (
        ["1.jpg", "2.jpg", "1.txt", "2.txt"], {}, {"1": b"1.jpg", "2": b"2.jpg"}, {},
        {"1.txt": "not_adjacent", "2.txt": "not_adjacent"},
    ),
    "not_adjacent_image": (
        ["1.jpg", "2.jpg", "1.png"], {}, {"1": b"1.jpg", "2": b"2.jpg"}, {"1": "not_adjacent"},
        {"1.png": "not_adjacent"},
    ),
    "hidden": (
        ["._1.jpg", "d/._1.jpg", "1.jpg"], {}, {"1": b"1.jpg"}, {}, {"._1.jpg": "hidden", "d/._1.jpg": "hidden"}
    ),
    "no_extension": (["1", "2.jpg"], {}, {"2": b"2.jpg"}, {}, {"1": "no_extension"}),
    "folders": (["a/1.jpg", "b.c/1.jpg"], {}, {"a/1": b"a/1.jpg", "b.c/1": b"b.c/1.jpg"}, {}, {}),
    "directories": ([("a", FOLDER), "a/1.jpg"], {}, {"a/1": b"a/1.jpg"}, {}, {}),
    "links": (
        ["1.jpg", ("2.jpg", SYMLINK), ("3.jpg", HARDLINK), ("4.jpg", PIPE)], {},
        {"1": b"1.jpg"}, {}, {"2.jpg": "link", "3.jpg": "link", "4.jpg": "not_a_file"},
    ),
    "captions_only": (
        ["1.txt", "README.md"], {}, {}, {"1": "no_image", "README": "no_image"},
        {"1.txt": "no_image", "README.md": "no_image"},
    ),
    "a_tar_inside": (["1.tar", "2.jpg"], {}, {"2": b"2.jpg"}, {"1": "no_image"}, {"1.tar": "no_image"}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_member_is_used_or_named(path, case):
    members, options, images, bad, unused = CASES[case]
    found = read(make(path, members), **options)
    assert found == ({key: (image, None) for key, image in images.items()}, bad, unused)


def test_a_name_that_is_there_twice(path):
    good, bad, _ = read(make(path, [("1.jpg", b"one"), ("2.jpg", b"two"), ("2.jpg", b"three")]))
    assert good == {"1": (b"one", None)}
    assert bad == {"2": "ambiguous_image"}


CAPTIONS = {
    "txt": (["1.jpg", "1.txt"], {}, {"1": b"1.txt"}, {}),
    "none": (["1.jpg"], {}, {}, {"1": "no_caption"}),
    "cap": (["1.jpg", "1.cap"], {}, {}, {"1": "no_caption"}),
    "cap_by_name": (["1.jpg", "1.cap", "1.txt"], {"caption_member": "cap;txt"}, {"1": b"1.cap"}, {}),
    "dates": (["a.1.jpg", "a.1.txt"], {}, {"a": b"a.1.txt"}, {}),
    "two": (["1.jpg", "1.en.txt", "1.de.txt"], {}, {}, {"1": "ambiguous_text"}),
    "two_by_name": (["1.jpg", "1.en.txt", "1.de.txt"], {"caption_member": "de.txt"}, {"1": b"1.de.txt"}, {}),
    "before_the_image": (["1.txt", "1.jpg"], {}, {"1": b"1.txt"}, {}),
    "apart": (["1.jpg", "2.jpg", "1.txt", "2.txt"], {}, {}, {"1": "no_caption", "2": "no_caption"}),
    "without_image": (["1.txt"], {}, {}, {"1": "no_image"}),
}


@pytest.mark.parametrize("case", CAPTIONS)
def test_captions(tmp_path, case):
    members, options, texts, bad = CAPTIONS[case]
    if case == "apart":  # each key comes twice: without its caption, and then apart from its image
        write(tmp_path / "a.tar", members)
        found = [item for item in open_source(tmp_path / "a.tar", EmbedConfig(what="both"), None)]
        codes = [item.problem[0] for item in found if not isinstance(item, Unused)]
        assert codes == ["no_caption", "no_caption", "not_adjacent", "not_adjacent"]
        return
    good, found, unused = read(write(tmp_path / "a.tar", members), what="both", **options)
    assert ({key: text for key, (_, text) in good.items()}, found) == (texts, bad)
    assert len(unused) + 2 * len(good) == len(members)


def test_a_caption_in_a_field_of_json(tmp_path):
    path = write(tmp_path / "a.tar", [("1.jpg", b"i"), ("1.json", b'{"title": "a cat"}'), ("1.txt", b"other")])
    good, _, unused = read(path, what="both", caption_field="title")
    assert good["1"][1] == b'{"title": "a cat"}'
    assert unused == {"1.txt": "not_asked"}


def test_a_field_is_looked_for_in_json_only(tmp_path):
    path = write(tmp_path / "a.tar", ["1.jpg", "1.txt", "2.jpg", ("2.json", b"{}"), "3.jpg", ("3.meta", b"{}")])
    for member, fields in (("txt;json", ["", "t"]), ("json;txt", ["", "t"]), ("meta", ["t"])):
        config = EmbedConfig(what="both", caption_member=member, caption_field="t")
        items = [item for item in open_source(path, config, None) if not isinstance(item, Unused)]
        assert [item.caption_field for item in items if not item.problem] == fields


@pytest.mark.parametrize(
    "options",
    [
        {"caption_member": "json"}, {"caption_member": "txt;JSON"}, {"image_member": ";"}, {"image_member": " . "},
        {"image_member": "jpg,png"}, {"image_member": "*.jpg"}, {"caption_member": "/txt", "caption_field": "t"},
    ],
)  # fmt: skip
def test_members_that_cannot_be_meant_are_refused(options):
    with pytest.raises(ClipModelsError, match=f"embed: {next(iter(options))} '.*' (needs caption_field|must be ext)"):
        EmbedConfig(what="both", **options)


def test_a_member_that_was_asked_for_and_is_not_there_is_named(tmp_path):
    path = write(tmp_path / "a.tar", ["1.jpg", "1.txt"])
    for options, reason in (
        ({"image_member": "webp"}, "--image-member 'webp' is not among the adjacent members of 1 (jpg, txt)"),
        ({"what": "both", "caption_member": "cap"}, "--caption-member 'cap' is not among the adjacent members of 1"),
    ):
        items = open_source(path, EmbedConfig(**options), None)
        [problem] = [item.problem for item in items if not isinstance(item, Unused)]
        assert reason in problem[1]


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"version https://git-lfs", bytes(100)])
@pytest.mark.parametrize("name", ["a.tar", "a.tgz"])
def test_what_is_no_tar_is_named_by_its_first_bytes_in_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ClipModelsError) as caught:
        read(tmp_path / name)
    begin = f"it begins with {content[:32]!r}" if content else "it is empty"
    assert str(caught.value) == (f"{tmp_path / name} is damaged or no tar: {begin}; fetch it again, or leave it out")


@pytest.mark.parametrize(
    ("value", "field", "found"),
    [
        (b"a cat\r\n", "", "a cat"), (b"\xef\xbb\xbfa cat", "", "a cat"), ("a cat", "", "a cat"),
        ("ein Bär".encode("latin-1"), "", "bad_caption"), ("a cat".encode("utf-16"), "", "bad_caption"),
        (b"", "", "empty_caption"), (b" \n", "", "empty_caption"), ("", "", "empty_caption"), (None, "", "no_caption"),
        (5, "", "no_caption"), ("\ud83d", "", "bad_caption"),
        (b'{"t": "a cat"}', "t", "a cat"), (b'{"t": ""}', "t", "empty_caption"), (b'{"t": null}', "t", "no_caption"),
        (b'{"t": 5}', "t", "no_caption"), (b'{"u": "a"}', "t", "no_caption"), (b"[1]", "t", "no_caption"),
        (b"{", "t", "bad_caption"), (b"", "t", "bad_caption"), (b'{"t": "\\ud83d"}', "t", "bad_caption"),
        (b"[" * 100_000, "t", "bad_caption"), (None, "t", "no_caption"),
    ],
)  # fmt: skip
def test_captions_that_cannot_be_read_have_a_code(value, field, found):
    if not found.endswith("_caption"):
        assert read_caption(value, field) == found
        return
    with pytest.raises(SampleError) as caught:
        read_caption(value, field)
    assert caught.value.code == found


def test_a_tar_with_another_one_appended_is_damaged(tmp_path):
    first, second = (write(tmp_path / f"{name}.tar", [f"{name}.jpg"]) for name in "ab")
    (tmp_path / "c.tar").write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(ClipModelsError, match=r"c.tar is damaged or no tar: there is more behind its end"):
        read(tmp_path / "c.tar")


@pytest.mark.parity
def test_keys_are_webdatasets(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    rng = random.Random(0)
    words = ["a", "B", "1", "x.y", "d/a", "d.e/b", "d/x.y.z", "ä", "-", "__m__"]
    names = [f"{rng.choice(words)}.{rng.choice(['jpg', 'PNG', 'seg.png', 'txt', 'json'])}" for _ in range(200)]
    names = [name for number, name in enumerate(names) if number == 0 or names[number - 1] != name]
    path = write(tmp_path / "a.tar", sorted(set(names)))
    items = webdataset.tariterators.group_by_keys(
        {"fname": name, "data": b"", "__url__": ""} for name in sorted(set(names))
    )
    wanted = [sample["__key__"] for sample in items]
    found = [item.key for item in open_source(path, EmbedConfig(), None) if not isinstance(item, Unused)]
    assert set(found) <= set(wanted)
    assert {key for key in wanted if wanted.count(key) == 1} <= set(found)


def test_unused_members_of_a_run_are_counted_and_listed(tmp_path):
    from clip_models import create_model, embed
    from tests.support.embeddings import MODEL

    members = [("1.jpg", image_bytes(0)), ("1.mask.png", image_bytes(1)), ("1.json", b"{}"), "._1.jpg"]
    members += [(name, image_bytes(2)) for name in DATES] + [("2.png", image_bytes(4)), ("2.txt", b"x")]
    path = write(tmp_path / "a.tar", members)
    model = create_model(MODEL, seed=0)
    for _ in range(2):  # the second run finds everything done
        summary = embed(path, tmp_path / "out", model=model, part_rows=2)
        assert (summary.samples, summary.rows, summary.rejected) == (3, 2, {"ambiguous_image": 1})
        assert summary.unused == {"ambiguous_image": 10, "hidden": 1, "not_asked": 2, "other_image": 1}
        manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
        assert manifest["unused"] == summary.unused
        lines = [json.loads(line) for line in (tmp_path / "out" / "unused.jsonl").read_text().splitlines()]
        assert {"name": f"{path}/1.mask.png", "reason": "other_image"} in lines
        assert len(lines) == sum(summary.unused.values())
    summary = embed(path, tmp_path / "out2", model=model, key_ends="last-dot")
    assert summary.rows == 13  # the mask and the dated ones are images of their own
