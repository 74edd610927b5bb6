"""The run: samples are read by one thread, decoded by several, and go through the model in batches and parts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from clip_core import ImageError, load_image
from clip_core.console import progress_bar
from clip_models.errors import ClipModelsError, first_line, local_path
from clip_models.inference.embedding.config import FREE, EmbedConfig
from clip_models.inference.embedding.inputs import open_source, storage_reason
from clip_models.inference.embedding.parts import Part, PartFolder
from clip_models.inference.embedding.samples import Sample, SampleError, Unused, read_caption

if TYPE_CHECKING:
    from clip_models.inference.encoder import Encoder
    from clip_models.model import CLIP


@dataclass(frozen=True, kw_only=True)
class EmbedSummary:
    """The counts of a run, those of earlier runs in the same folder included."""

    output: str
    samples: int
    """Samples of the source."""
    rows: int
    """Embedded ones."""
    rejected: Mapping[str, int]
    """Rejected samples by code: missing, too_large, undecodable, pixel_format, no_image, no_caption, empty_caption,
    bad_caption, ambiguous_image, ambiguous_text, not_adjacent."""
    unused: Mapping[str, int]
    """Files, members of tars or lines that are in no sample, by reason (see `Unused`)."""
    truncated: int
    """Captions that lost their end."""
    parts: int
    """Output files."""


@dataclass
class _Building:
    """The current part. Features stay on the device until it is complete."""

    keys: list[str] = field(default_factory=list)
    features: dict[str, list[Any]] = field(default_factory=dict)
    rejects: list[tuple[str, str, str]] = field(default_factory=list)
    truncated: int = 0
    batch: list[tuple[np.ndarray | None, str | None]] = field(default_factory=list)


def embed(
    source: str | os.PathLike[str] | Iterable[Any],
    output: str | os.PathLike[str],
    *,
    model: str | CLIP,
    pretrained: str | os.PathLike[str] | None = None,
    progress: bool = False,
    **options: Any,
) -> EmbedSummary:
    """Embeds the images or captions of `source` into files with keys in the folder `output`; see `EmbedConfig`.

    `source`: a folder of images (with all folders below it), tars in webdataset's layout, parquet tables, text files
    with a path or a caption a line, or images; as a path, a URL or a pattern (`shards/{000..127}.tar`, `*.parquet`).
    Or an iterable of paths, bytes and Pillow images, of captions, of pairs, or of mappings with key, image and text.
    `model`: a name with its `pretrained` weights (tag or file), or a CLIP.

    A stopped run continues when it is called again, and ends with the same files. Rejected samples are counted, and
    listed with the reason in rejects.jsonl; unused files and members are listed in
    unused.jsonl. Raises ClipModelsError.
    """
    try:
        config = EmbedConfig(**options)
    except TypeError as error:
        names = ", ".join(f.name for f in dataclasses.fields(EmbedConfig))
        raise ClipModelsError(f"embed does not know one of {', '.join(options)}; it takes {names}") from error
    return run_embed(source, output, model, pretrained, config, progress)


def run_embed(
    source: Any,
    output: str | os.PathLike[str],
    model: str | CLIP,
    pretrained: str | os.PathLike[str] | None,
    config: EmbedConfig,
    progress: bool,
) -> EmbedSummary:
    """`embed` with a config."""
    from clip_models.inference.encoder import Encoder

    output = local_path(output, "output")
    run = _Run(source, config, progress)  # before the model: it fails sooner
    weights = os.fspath(pretrained) if pretrained else None
    options: dict[str, Any] = {"quick_gelu": config.quick_gelu, "image_mode": config.image_mode}
    encoder = Encoder.load(model, weights, config.precision, config.device, **options)
    return run.execute(encoder, os.fspath(output))


class _Run:
    encoder: Encoder
    folder: PartFolder
    list_unused: Callable[[str, str], int]

    def __init__(self, source: Any, config: EmbedConfig, progress: bool) -> None:
        self.source = source
        self.samples = open_source(source, config, self._needs)
        self.config = config
        self.progress = progress
        self.kinds = config.kinds
        self.unused = Counter[str]()
        self.workers = config.workers or min(16, os.cpu_count() or 1)

    def execute(self, encoder: Encoder, output: str) -> EmbedSummary:
        self.encoder = encoder
        described = self._describe()
        fingerprint = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
        self.folder = PartFolder(output, described, fingerprint)
        totals, rejected = Counter[str](samples=0, rows=0, truncated=0, parts=0), Counter[str]()
        building = _Building()
        with (
            progress_bar(unit=" samples", unit_scale=True, show=self.progress) as bar,
            self.folder.list_unused() as self.list_unused,
            self._feed() as items,
        ):
            for item in items:
                if not isinstance(item, Part):
                    self._add(building, *item)
                    bar.update()
                    continue
                part = item if item.files else self._finish(building, item)
                if item.files and self.progress:
                    bar.initial += part.samples  # of an earlier run: they do not count for the rate
                    bar.update(part.samples)
                building = _Building()
                totals.update(samples=part.samples, rows=part.rows, truncated=part.truncated, parts=1)
                rejected.update(code for _, code, _ in part.rejects)
                bar.set_postfix(rejected=rejected.total(), refresh=False)
        counts: dict[str, Any] = {
            **totals,
            "rejected": dict(sorted(rejected.items())),
            "unused": dict(sorted(self.unused.items())),
        }
        if self.folder.read_part(totals["parts"]) is not None:
            raise self._changed(totals["parts"])
        self.folder.write_rejects(totals["parts"])
        scale = float(self.encoder.model.logit_scale.detach().exp())  # what the embeddings' cosines are multiplied by
        self.folder.write_manifest({"complete": True, "logit_scale": scale, **counts})
        return EmbedSummary(output=str(self.folder.root), **counts)

    def _describe(self) -> dict[str, Any]:
        """Returns what must stay the same when a run is continued."""
        config, encoder, source = self.config, self.encoder, "an iterable"
        if isinstance(self.source, str | os.PathLike):
            source = os.fspath(self.source)
            source = source if "://" in source else os.path.abspath(source)
        return {
            "source": source,
            "model": encoder.spec.name,
            "embed_dim": encoder.spec.embed_dim,
            "spec_sha256": encoder.spec_fingerprint,
            "weights_sha256": encoder.digest,
            **{f.name: getattr(config, f.name) for f in dataclasses.fields(EmbedConfig) if f.name not in FREE},
        }

    def _add(self, building: _Building, key: str, future: Future[tuple[np.ndarray | None, str | None]]) -> None:
        try:
            building.batch.append(future.result())
        except (ImageError, SampleError) as error:
            building.rejects.append((_utf8(key), error.code, _utf8(str(error))))
            return
        building.keys.append(_utf8(key))
        if len(building.batch) == self.config.batch_size:
            self._encode(building)

    def _encode(self, building: _Building) -> None:
        images, texts = zip(*building.batch, strict=True)
        building.batch = []
        if "image" in self.kinds:
            features = self.encoder.encode_pixels(np.stack(images), self.config.normalize)
            building.features.setdefault("image", []).append(features)
        if "text" in self.kinds:
            building.truncated += self.encoder.tokenizer.count_truncated(list(texts))
            features = self.encoder.encode_texts(texts, self.config.normalize)
            building.features.setdefault("text", []).append(features)

    def _finish(self, building: _Building, part: Part) -> Part:
        import torch

        if building.batch:
            self._encode(building)
        arrays = {}
        for kind in self.kinds:
            made = building.features.get(kind)
            array = torch.cat(made).cpu().numpy() if made else np.empty((0, self.encoder.spec.embed_dim), np.float32)
            with np.errstate(over="ignore"):  # checked in the next line
                arrays[kind] = array.astype(self.config.dtype)
            finite = np.isfinite(arrays[kind]).all(axis=1)
            if not finite.all():
                raise ClipModelsError(
                    f"the {kind} embedding of {building.keys[finite.argmin()]} is not finite in {self.config.precision}"
                    f" and {self.config.dtype}; use precision fp32 or bf16, and dtype float32"
                )
        rejects = tuple(building.rejects)
        part = dataclasses.replace(part, rows=len(building.keys), truncated=building.truncated, rejects=rejects)
        self.folder.write_part(part, building.keys, arrays, self.config.format)
        return part

    @contextmanager
    def _feed(self) -> Iterator[Iterator[Any]]:
        """Yields (key, future of `_prepare`) of each sample to be done, in order, and a Part after those of a part.

        A Part without files is still to be written. The number of samples in progress is bounded.
        """
        ready: queue.Queue[Any] = queue.Queue(2 * self.config.batch_size + self.workers)
        stopped = threading.Event()

        def put(item: Any) -> None:
            while not stopped.is_set():
                with suppress(queue.Full):
                    return ready.put(item, timeout=0.1)
            raise _Stopped

        def read() -> None:
            with suppress(_Stopped):
                try:
                    self._read(pool, put)
                    put(None)
                except Exception as error:
                    put(error)

        def items() -> Iterator[Any]:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item

        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="decode")
        reader = threading.Thread(target=read, name="read", daemon=True)
        reader.start()
        try:
            yield items()
        finally:
            stopped.set()
            reader.join()
            pool.shutdown(cancel_futures=True)

    def _read(self, pool: ThreadPoolExecutor, put: Any) -> None:
        number, count, digest = 0, 0, hashlib.blake2b(digest_size=16)
        done = self.folder.read_part(0)

        def end() -> None:
            part = Part(number=number, samples=count, source=digest.hexdigest())
            if done is not None and (done.samples, done.source) != (part.samples, part.source):
                raise self._changed(number)
            put(done or part)

        for sample in self.samples:
            if isinstance(sample, Unused):
                self.list_unused(_utf8(sample.name), sample.reason)
                self.unused[sample.reason] += 1
                continue
            text = sample.text.encode("utf-8", "surrogatepass") if isinstance(sample.text, str) else sample.text
            text = text if isinstance(text, bytes) else b""
            digest.update(b"%b\0%b\0" % (sample.key.encode("utf-8", "surrogatepass"), text))
            count += 1
            if done is None:
                if sample.in_turn:
                    sample = dataclasses.replace(sample, image=_called(sample.image), text=_called(sample.text))
                put((sample.key, pool.submit(self._prepare, sample)))
            if count == self.config.part_rows:
                end()
                number, count, digest = number + 1, 0, hashlib.blake2b(digest_size=16)
                done = self.folder.read_part(number)
        if count:
            end()

    def _needs(self, first: int, stop: int) -> bool:
        rows = self.config.part_rows
        return any(self.folder.read_part(number) is None for number in range(first // rows, (stop - 1) // rows + 1))

    def _prepare(self, sample: Sample) -> tuple[np.ndarray | None, str | None]:
        """Returns (pixels, caption), None for what is not embedded. Raises ImageError or SampleError."""
        pixels = text = None
        if sample.problem:
            raise SampleError(*sample.problem)
        try:
            if "text" in self.kinds:
                text = read_caption(_called(sample.text), sample.caption_field)
            if "image" in self.kinds:
                if sample.image is None:
                    raise SampleError("no_image", "there is no image")
                pixels = self._decode(_called(sample.image), sample.key)
        except (ImageError, SampleError):
            raise
        except FileNotFoundError as error:
            is_text = "text" in self.kinds and text is None
            absent = f"{error.filename} does not exist" if error.filename else first_line(error)
            raise SampleError("no_caption" if is_text else "missing", absent) from error
        except Exception as error:
            if (reason := storage_reason(error)) is None:
                raise
            raise ClipModelsError(
                f"{sample.key} cannot be read: {reason}; run again to continue, or take it out of the source"
            ) from error
        return pixels, text

    def _decode(self, image: Any, key: str) -> np.ndarray:
        from PIL import Image

        if not isinstance(image, Image.Image):
            if not isinstance(image, str | os.PathLike | bytes):
                raise ImageError(f"{key} is of type {type(image).__name__}, not an image", "undecodable")
            mode, name = self.config.image_mode, key if isinstance(image, bytes) else ""  # a path names itself
            image = load_image(image, max_pixels=self.config.max_pixels, image_mode=mode, name=name)
        return self.encoder.pixels(image)

    def _changed(self, number: int) -> ClipModelsError:
        return ClipModelsError(
            f"the source has changed since part {number} of {self.folder.root} was made; restore it, or choose another"
            " folder"
        )


class _Stopped(BaseException):
    """The run has ended while the reader was working."""


def _called(value: Any) -> Any:
    return value() if callable(value) else value


def _utf8(text: str) -> str:
    """Returns a name with replacement characters for bytes that are not UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
