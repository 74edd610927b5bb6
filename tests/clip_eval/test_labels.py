import importlib.util
import json
import runpy
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clip_data.tables import write_table
from clip_eval import ClipEvalError, EvalConfig, ZeroShotConfig, evaluate, features
from clip_eval.benchmarks.zeroshot import prompts_of
from clip_eval.labels import OTHER, UNLABELLED, ClassRow, Labels, read_labels
from tests.support.datasets import make_dataset
from tests.support.evals import make_image, tiny_model

CAFE = ("café", unicodedata.normalize("NFD", "café"))


def dataset_of(folder: Path, labels: list[Any], kind: pa.DataType | None = None) -> str:
    """A dataset of one image for each label, in units of four; its column `label` has the given type."""
    image = make_image("red", 0)
    samples = [{"image": image, "caption": f"number {i}", "label": label} for i, label in enumerate(labels)]
    dataset = make_dataset(folder / "data", samples, rows_per_unit=4)
    for unit in dataset.units if kind else ():
        table = dataset.sidecar(unit)
        values = pa.array(labels[unit.row_start : unit.row_start + unit.rows], kind)
        table = table.set_column(table.column_names.index("label"), "label", values)
        write_table(dataset.store, unit.sidecar_name, table)
    return str(folder / "data")


def read(folder: Path, labels: list[Any], kind: pa.DataType | None = None, **benchmark: Any) -> Labels:
    from clip_data.stream import Source, build_manifest

    root = dataset_of(folder, labels, kind)
    return read_labels(ZeroShotConfig(name="t", dataset=root, **benchmark), build_manifest([Source(dataset=root)]))


def classes_file(folder: Path, name: str, text: str) -> str:
    (folder / name).write_bytes(text.encode("utf-8"))
    return str(folder / name)


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint64(), pa.dictionary(pa.int8(), pa.int32())])
def test_integer_labels_are_ids(tmp_path, kind):
    found = read(tmp_path, [1, 0, None, 1], kind, classes=("cat", "dog"))
    assert list(found.of_key.values()) == [1, 0, UNLABELLED, 1]
    assert [(row.id, row.name) for row in found.classes] == [(0, "cat"), (1, "dog")]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_string_labels_are_names_without_regard_to_unicode_form_and_white_space(tmp_path, kind):
    labels = ["dog ", CAFE[1], "hot\tdog\n", "", "  ", None, "cow"]
    found = read(tmp_path, labels, kind, classes=(CAFE[0], "dog", " hot  dog"))
    assert list(found.of_key.values()) == [1, 0, 2, UNLABELLED, UNLABELLED, UNLABELLED, OTHER]
    assert [row.name for row in found.classes] == ["café", "dog", "hot dog"]


def test_string_labels_that_occur_are_the_classes_when_none_are_given(tmp_path):
    found = read(tmp_path, ["b", CAFE[0], None, CAFE[1], "b "])
    assert [row.name for row in found.classes] == ["b", "café"]
    assert list(found.of_key.values()) == [0, 1, UNLABELLED, 1, 0]


def test_only_selected_rows_are_looked_at(tmp_path):
    image = make_image("red", 0)
    samples = [
        {"image": image, "caption": "1", "label": "dog"},
        {"image": None, "caption": "2", "label": "Dog"},
        {"image": image, "caption": "3", "label": "DOG"},
    ]
    dataset = make_dataset(tmp_path / "data", samples)
    dataset.take_down([dataset.sidecar(dataset.units[0])["uid"][2].as_py().hex()], "asked for")
    from clip_data.stream import Source, build_manifest

    benchmark = ZeroShotConfig(name="t", dataset=dataset.url)
    found = read_labels(benchmark, build_manifest([Source(dataset=dataset.url)]))
    assert list(found.of_key.values()) == [0]


BAD_LABELS = [
    ([3, 0, 3], None, {}, r"integers \(3 in row 0 of .*00000000.*\) without names: list the class names"),
    ([0, 1, 2], None, {"classes": ("a", "b")}, r"the label 2 in row 2 of .* is not the id of a class \(ids: 0 to 1\)"),
    ([0, -1], None, {"classes": ("a", "b")}, "the label -1 in row 1 .* use null for a sample without a label"),
    ([None, [], ["a", "b"]], None, {}, r"'label' has the type list<.*\[\] in row 1 of .*several labels per sample"),
    (
        [None, None, None, None, 0.5, 1.0],
        None,
        {"classes": ("a", "b")},
        "type double, such as 0.5 in row 0 of .*1.parq",
    ),
    ([0.0, 1.0], None, {"classes": ("a", "b")}, "type double, such as 0.0 in row 0"),
    ([True, False], None, {"classes": ("a", "b")}, "type bool, such as True"),
    ([b"a", b"b"], None, {}, "type binary, such as b'a'"),
    ([{"a": 1}], None, {}, "type struct<"),
    ([None, None], pa.null(), {}, "none of its 2 samples has a value in the column 'label'"),
    ([None, ""], None, {}, "none of its 2 samples has a value"),
    (["0", "1", "10"], None, {}, r"are numbers \('0', …\): if they are ids, store them as integers"),
    (["0.0", "1.0"], None, {}, "are numbers"),
    (["0", "1"], None, {"classes": ("a", "b")}, r"strings of digits \('0'\): store them as integers"),
    (["Dog", "dog"], None, {}, "'Dog' .* and 'dog' .* cannot be told apart"),
    (["a_b", "a b"], None, {}, "'a b' .* and 'a_b' .* cannot be told apart"),
    (["dog", "cat"], None, {"classes": ("Dog", "dog")}, "'Dog' .id 0. and 'dog' .id 1. cannot be told apart"),
    (["crane"], None, {"classes": ("crane", "cow", "crane")}, "'crane' .id 0. and 'crane' .id 2. cannot be told apart"),
    (
        ["cat", "Dog"],
        None,
        {"classes": ("dog", "cat")},
        "the label 'Dog' in row 1 .* the class 'dog' differ only in case",
    ),
    (
        ["cat", "hot_dog"],
        None,
        {"classes": ("hot dog", "cat")},
        "'hot_dog' .* 'hot dog' differ only in case or spelling",
    ),
    (["don’t", "cat"], None, {"classes": ("don't", "cat")}, "'don’t' .* differ only in case or spelling"),
    (["t–shirt", "cat"], None, {"classes": ("t-shirt", "cat")}, "'t–shirt' .* differ only in case or spelling"),
    (["dog\0", "cat"], None, {"classes": ("dog", "cat")}, "differ only in case or spelling"),
    (["STRASSE", "a"], None, {"classes": ("straße", "a")}, "'STRASSE' .* 'straße' differ"),
    (["cow"], None, {"classes": ("dog", "cat")}, "belongs to one of the 2 classes; the labels are cow"),
    (["dog"], None, {"classes": ("dog", "")}, r"the name of the class at position 1 \(id 1\) is empty"),
    ([None, "dog"], None, {"classes": ("\t", "dog")}, "the name of the class at position 0"),
]


@pytest.mark.parametrize(("labels", "kind", "benchmark", "message"), BAD_LABELS)
def test_labels_that_would_be_scored_wrongly_are_refused(tmp_path, labels, kind, benchmark, message):
    with pytest.raises(ClipEvalError, match=f"benchmark 't': .*{message}"):
        read(tmp_path, labels, kind, **benchmark)


def test_units_may_not_mix_names_and_ids(tmp_path):
    root = dataset_of(tmp_path, ["a"] * 4 + ["b"] * 4)
    from clip_data.dataset import Dataset
    from clip_data.stream import Source, build_manifest

    dataset = Dataset.open(root)
    table = dataset.sidecar(dataset.units[1])
    place = table.column_names.index("label")
    write_table(dataset.store, dataset.units[1].sidecar_name, table.set_column(place, "label", pa.array([7] * 4)))
    with pytest.raises(ClipEvalError, match=r"both integers and strings: .*7 .row 0 of .*'a' .row 0 of"):
        read_labels(ZeroShotConfig(name="t", dataset=root, classes=("a", "b")), build_manifest([Source(dataset=root)]))


def test_a_text_file_of_names(tmp_path):
    file = classes_file(tmp_path, "names.txt", "\ufeffcrane\r\n hot dog \r\ncrane\r\n")
    found = read(tmp_path, [2, 0, 1], classes_file=file)
    assert [(row.id, row.name) for row in found.classes] == [(0, "crane"), (1, "hot dog"), (2, "crane")]
    assert list(found.of_key.values()) == [2, 0, 1]


def test_rows_of_a_file_have_ids_and_prompts_and_their_gaps_are_other_classes(tmp_path):
    rows = [{"id": 517, "name": "crane"}, {"id": 134, "name": "crane", "prompts": ["a {} bird"]}]
    file = classes_file(tmp_path, "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    found = read(tmp_path, [517, 134, 3, None], classes_file=file)
    assert [(row.id, row.prompts) for row in found.classes] == [(134, ("a {} bird",)), (517, ())]
    assert list(found.of_key.values()) == [1, 0, OTHER, UNLABELLED]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "dog\n\ncat\n", r"position 1 \(id 1\) is empty"),
        ("a.csv", "id,name\n", "must end with .txt .* or .jsonl"),
        ("a.jsonl", '{"name": "dog"}\n{"nme": "cat"}\n', "line 2: unknown key nme; did you mean name"),
        ("a.jsonl", '{"name": "dog", "id": "n02"}\n', "line 1: id = 'n02' must be an integer"),
        ("a.jsonl", "[]\n", "line 1: the file must be a table"),
        ("a.jsonl", "dog\n", "a.jsonl, line 1 is damaged: .* one class per line"),
        ("a.jsonl", '{"name": "dog", "id": 1}\n{"name": "cat"}\n', "'dog' and 'cat' both have the id 1"),
        (
            "a.jsonl",
            '{"name": "dog"}\n{"id": 1, "name": "cat", "id": 2}\n',
            "line 2 is damaged: the key 'id' occurs twice",
        ),
        ("a.jsonl", '{"name": "dog", "id": -1}\n', "'dog' has the id -1: ids start at 0"),
        ("a.jsonl", '{"name": "dog", "prompts": [" "]}\n', "a prompt of the class at position 0"),
    ],
)
def test_bad_files_of_classes(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, [0], classes_file=classes_file(tmp_path, name, text))
    with pytest.raises(ValueError, match=r"nothing\.txt does not exist"):
        read(tmp_path / "b", [0], classes_file=str(tmp_path / "nothing.txt"))


def test_nothing_is_written_for_labels_that_are_refused(tmp_path):
    root = dataset_of(tmp_path, [0, 1])
    model = str(tiny_model(tmp_path / "model.safetensors"))
    with pytest.raises(ClipEvalError, match="integers"):
        evaluate(
            EvalConfig(model=model, out=str(tmp_path / "eval"), benchmarks=(ZeroShotConfig(name="t", dataset=root),))
        )
    assert not (tmp_path / "eval").exists()


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory) -> tuple[Path, tuple[str, ...]]:
    """Images with the ids of ImageNet's repeated names and some others, and a model."""
    (package,) = importlib.util.find_spec("open_clip").submodule_search_locations
    metadata = runpy.run_path(f"{package}/zero_shot_metadata.py")  # importing the package would load torchvision
    folder = tmp_path_factory.mktemp("imagenet")
    tiny_model(folder / "model.safetensors")
    ids = [657, 744, 836, 837, 0, 999, 657, 744]
    samples = [
        {"image": make_image(("red", "green", "blue")[i % 3], i), "caption": f"number {i}", "label": label}
        for i, label in enumerate(ids)
    ]
    make_dataset(folder / "data", samples)
    return folder, tuple(metadata["IMAGENET_CLASSNAMES"])


@pytest.mark.slow
def test_imagenet_names_with_two_that_repeat(imagenet, tmp_path):
    folder, names = imagenet
    assert (len(names), len(set(names))) == (1000, 998)
    assert (names[657], names[836]) == (names[744], names[837]) == ("missile", "sunglasses")
    outcomes = []
    for batch_size in (7, 1000):
        benchmark = ZeroShotConfig(
            name="imagenet", dataset=str(folder / "data"), classes=names, templates=("{}",), batch_size=batch_size
        )
        out = tmp_path / str(batch_size)
        rows = evaluate(EvalConfig(model=str(folder / "model.safetensors"), out=str(out), benchmarks=(benchmark,)))
        details = json.loads((out / "details/imagenet.json").read_text(encoding="utf-8"))
        outcomes.append([(row["metric"], row["value"], row["n"], row["same_prompts"]) for row in rows] + [details])
        assert rows[0]["same_prompts"] == 2
        assert [details["classes"][i] for i in (657, 744, 0)] == ["missile (657)", "missile (744)", names[0]]
    # The bits of features may move with the batch size; what ties and who wins may not.
    assert [metric for metric, *_ in outcomes[0][:-1]] == ["top1", "top5", "mean_per_class_recall"]
    assert outcomes[0] == outcomes[1]


class Fixed:
    """An embedder whose texts are known: prompts that contain "bird" lie on one axis, other prompts on the next."""

    def texts(self, texts, *, precision, batch_size):
        rows = np.array([[1.0, 0, 0] if "bird" in text else [0, 1.0, 0] for text in texts], np.float32)
        return features.TextFeatures(features=rows, truncated=0)


def outcome_of(file: str, truth: list[int]) -> list[tuple[int, int]]:
    """(rank, predicted) of images that lie on the axis of "bird", with the given classes."""
    from clip_eval.labels import read_classes
    from clip_eval.metrics import classify

    benchmark = ZeroShotConfig(name="t", dataset="unused", classes_file=file)
    labels = Labels(classes=read_classes(benchmark), of_key={str(i): index for i, index in enumerate(truth)})
    unit = np.repeat(np.array([[1.0, 0, 0]], np.float32), len(truth), axis=0)
    strings = {name: [str(i) for i in range(len(truth))] for name in ("uid", "key")}
    images = features.ImageFeatures(features=unit, strings=strings, corrupt=0)
    outcome = benchmark.measure(images, Fixed(), labels)
    prompts = [[t.replace("{}", row.name) for t in row.prompts or benchmark.templates] for row in labels.classes]
    classifier = np.array([[float("bird" in texts[0]), float("bird" not in texts[0]), 0] for texts in prompts])
    result = classify(unit, classifier.astype(np.float32), np.asarray(truth))
    assert outcome.metrics[0].value == (result.predicted == truth).mean()
    assert outcome.counts["same_prompts"] == len(prompts) - len(np.unique(classifier, axis=0))
    return list(zip(result.rank.tolist(), result.predicted.tolist(), strict=True))


def test_a_name_with_braces_is_put_in_as_it_is():
    row = ClassRow(id=0, name="set {}")
    assert prompts_of(row, ("a {c}", "one {} and {}")) == ["a set {}", "one set {} and set {}"]


def test_prompts_of_their_own_tell_two_cranes_apart(tmp_path):
    tie = classes_file(tmp_path, "tie.jsonl", '{"name": "crane bird"}\n{"name": "cow"}\n{"name": "crane bird"}\n')
    assert outcome_of(tie, [0, 2]) == [(0, 0), (1, 0)]
    rows = '{"name": "crane", "prompts": ["a crane, a machine", "a {} machine"]}\n{"name": "cow"}\n'
    own = classes_file(tmp_path, "own.jsonl", rows + '{"name": "crane", "prompts": ["a {}, a bird"]}\n')
    assert outcome_of(own, [0, 2]) == [(1, 2), (0, 2)]


def test_texts_with_the_same_tokens_have_the_same_features(tmp_path):
    from clip_core.store import Store

    model = str(tiny_model(tmp_path / "model.safetensors"))
    texts = ["a dog", *(f"thing {i}" for i in range(20)), "A DOG", "a  dog"]
    for batch_size in (2, 23):
        embedder = features.FileEmbedder(model, Store(tmp_path / str(batch_size)))
        found = embedder.texts(texts, precision="fp32", batch_size=batch_size).features
        assert len(found) == len(texts)
        assert np.array_equal(found[0], found[-1])
        assert np.array_equal(found[0], found[-2])
        assert len(np.unique(found, axis=0)) == 21
        alone = features.FileEmbedder(model, Store(tmp_path / f"alone {batch_size}"))
        np.testing.assert_allclose(
            alone.texts([texts[7]], precision="fp32", batch_size=1).features[0], found[7], atol=1e-5
        )
