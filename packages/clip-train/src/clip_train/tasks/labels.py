"""The classes of a labelled dataset, for tasks that train on them. They are read as clip-eval reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clip_core import ClipError
from clip_eval.benchmarks.zeroshot import ZeroShotConfig, prompts_of
from clip_train.captions import Captions
from clip_train.errors import ClipTrainError
from clip_train.synthetic import SyntheticConfig

if TYPE_CHECKING:
    import numpy as np

    from clip_data.stream import Manifest
    from clip_models.tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class LabelsConfig:
    """Where the class of a sample is, and how classes are written as text."""

    column: str = "label"
    """column of the dataset with the class: its name, or its id as an integer"""
    classes: tuple[str, ...] = ()
    """names of the classes by id; empty takes the labels that occur, sorted"""
    classes_file: str = ""
    """instead of classes, a file of clip-eval: .txt with a name per line, or .jsonl with names, ids and prompts"""
    templates: tuple[str, ...] = ("a photo of a {}.",)
    """prompts of a class; {} stands for its name"""

    def check(self) -> None:
        """Raises ClipTrainError for values that do not fit together."""
        self.benchmark("labels")

    def benchmark(self, dataset: str) -> ZeroShotConfig:
        """Returns the config of a zero-shot benchmark with these labels."""
        try:
            return ZeroShotConfig(
                name="task.labels",
                dataset=dataset,
                label_column=self.column,
                classes=self.classes,
                classes_file=self.classes_file,
                templates=self.templates,
            )
        except ClipError as error:
            raise ClipTrainError(f"task.labels: {error}") from error


class ClassLabels:
    """The classes of all samples of a run. `names`: of the classes, by number; `prompts`: their texts."""

    def __init__(self, config: LabelsConfig) -> None:
        self._config = config
        self.names: list[str] = []
        self.prompts: list[list[str]] = []
        self._index: dict[Any, int] = {}

    def read(self, *manifests: Manifest | SyntheticConfig | None) -> None:
        """Reads the labels of all samples. Raises ClipTrainError, with counts, if a sample is of no class."""
        for manifest in manifests:
            if manifest is None:
                continue
            if isinstance(manifest, SyntheticConfig):
                raise ClipTrainError(
                    f"the task reads the column {self._config.column!r}, which data.synthetic does not have: "
                    "name a dataset in data.sources"
                )
            for part in manifest.parts:
                self._read(type(manifest)(parts=[part]), part.source.dataset)

    def _read(self, manifest: Manifest, dataset: str) -> None:
        from clip_eval import labels

        try:
            found = labels.read_labels(self._config.benchmark(dataset), manifest)
        except ClipError as error:
            raise ClipTrainError(str(error).replace("benchmark 'task.labels'", f"task.labels of {dataset}")) from error
        numbers = [*found.of_key.values()]
        for what, code in (("have no label", labels.UNLABELLED), ("are of other classes", labels.OTHER)):
            if count := numbers.count(code):
                raise ClipTrainError(
                    f"task.labels: {count:,} of the {len(numbers):,} samples of {dataset} {what} in the column "
                    f"{self._config.column!r}: select those of the classes ('clip-data select --where …'), or list all "
                    "classes in task.labels"
                )
        names = [row.name for row in found.classes]
        if self.names and names != self.names:
            differs = next(iter({*names} ^ {*self.names}), names[0])
            raise ClipTrainError(
                f"task.labels: the classes of {dataset} are others than those of the dataset before ({differs!r}): "
                "list all classes in task.labels.classes or task.labels.classes_file"
            )
        self.names = names
        self.prompts = [prompts_of(row, self._config.templates) for row in found.classes]
        self._index |= found.index
        self._plain = labels.plain

    def tokens(self, tokenizer: Tokenizer) -> np.ndarray:
        """Returns the tokens of all prompts, int64 [prompts, context], class after class.

        Raises ClipTrainError for a prompt that is too long.
        """
        captions, prompts = Captions((tokenizer,)), [prompt for of_class in self.prompts for prompt in of_class]
        tokens = captions(prompts)
        for row in captions.truncated(prompts, tokens):
            raise ClipTrainError(
                f"task.labels: the prompt {prompts[row]!r} has more tokens than the model's context of "
                f"{tokenizer.context_length}: shorten the template or the class's name"
            )
        return tokens

    def numbers(self, labels: Sequence[Any]) -> np.ndarray:
        """Returns the numbers of the classes, int64 [B], of labels as the dataset has them."""
        import numpy as np

        plain = (self._plain(label) if isinstance(label, str) else label for label in labels)
        return np.array([self._index[label] for label in plain], np.int64)
