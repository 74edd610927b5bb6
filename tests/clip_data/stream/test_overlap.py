import pytest

from clip_data.errors import ClipDataError
from clip_data.select import SelectConfig, select
from clip_data.stream import Manifest, Source, build_manifest, refuse_overlap
from tests.support.streams import stream_dataset


def manifest(root, *selections: str) -> Manifest:
    return build_manifest([Source(dataset=str(root), selection=name) for name in selections])


def check(training: Manifest, held_out: Manifest) -> None:
    refuse_overlap(training, held_out, name="val.sources", option="val.overlap = 'allow'")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "a"
    dataset = stream_dataset(root)
    for name, where in {
        "train": "number < 60",
        "held": "number >= 60",
        "mixed": "number >= 50",
        "last": "number >= 80",
    }.items():
        select(dataset, SelectConfig(name=name, where=where))
    return root


def test_apart_is_silent(root):
    check(manifest(root, "train"), manifest(root, "held"))
    check(manifest(root, "train"), manifest(root, "held", "last"))  # that these two overlap is nobody's business


def kept(start: int, stop: int) -> int:
    """How many of these numbers the stream's dataset keeps."""
    return sum(number % 11 != 5 for number in range(start, stop))


def test_common_samples_are_counted_and_named(root):
    counts = f"{kept(50, 60)} of the {kept(50, 90)} samples of val.sources are training samples too"
    with pytest.raises(
        ClipDataError, match=rf"{counts} \(uid ([0-9a-f]{{32}}, ){{3}}…\): .* with val.overlap = 'allow'"
    ):
        check(manifest(root, "train"), manifest(root, "mixed"))


def test_every_source_is_compared(root):
    with pytest.raises(ClipDataError, match=f"{kept(80, 90)} of the {kept(80, 90)} samples"):
        check(manifest(root, "train", "held"), manifest(root, "last"))
    with pytest.raises(ClipDataError, match=f"{kept(80, 90)} of the {kept(0, 60) + kept(50, 90)} samples"):
        check(manifest(root, "last"), manifest(root, "train", "mixed"))


def test_the_same_sample_in_another_dataset_is_found(root, tmp_path):
    stream_dataset(tmp_path / "copy")  # the same URLs and captions
    with pytest.raises(ClipDataError, match=f"{kept(80, 90)} of the {kept(0, 90)} samples"):
        check(manifest(root, "last"), manifest(tmp_path / "copy", ""))


def test_a_sample_that_was_taken_down_is_not_in_training(root, tmp_path):
    dataset = stream_dataset(tmp_path / "b")
    rows = [row for unit in dataset.units for row in dataset.sidecar(unit).to_pylist()]
    # From 86 on: of the unit with the rows 80 to 87 a part stays.
    dataset.take_down([row["uid"].hex() for row in rows if row["number"] >= 86], reason="asked")
    with pytest.raises(ClipDataError, match=f"^{kept(80, 86)} of the {kept(80, 90)} samples"):
        check(manifest(tmp_path / "b", ""), manifest(root, "last"))
