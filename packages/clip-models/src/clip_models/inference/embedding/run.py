"""The run: samples are read by one thread, decoded by several, and go through the model in batches and parts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import queue
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
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
from clip_models.inference.embedding.parts import Part, PartFolder, UnusedList
from clip_models.inference.embedding.samples import CaptionError, Sample, Unused, read_caption

if TYPE_CHECKING:
    from clip_models.inference.encoder import Encoder
    from clip_models.model import CLIP


@dataclass(frozen=True, kw_only=True)
class EmbedSummary:
    """What a run did, those before it in the same folder included."""

    output: str
    samples: int
    """Samples of the source."""
    rows: int
    """Embedded ones."""
    rejected: Mapping[str, int]
    """How many of the others for each reason: missing, too_large, undecodable, pixel_format, no_image, no_caption,
    empty_caption, bad_caption, ambiguous_image, ambiguous_text, not_adjacent."""
    unused: Mapping[str, int]
    """How many files, members of tars or lines are in no sample, for each reason (see `Unused`)."""
    truncated: int
    """Captions that lost their end."""
    parts: int
    """Output files."""


@dataclass(frozen=True)
class _Reject:
    code: str
    reason: str


@dataclass
class _PartEnd:
    """Comes after the samples of a part."""

    number: int
    samples: int
    source: str
    done: Part | None


@dataclass
class _Building:
    """The part at hand. Features stay on the device until it is complete."""

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
    """Embeds the pictures or captions of `source` into files with keys in the folder `output`; see `EmbedConfig`.

    `source`: a folder of pictures (with all folders below it), tars in webdataset's layout, parquet tables, text files
    with a path or a caption a line, or pictures; as a path, a URL or a pattern (`shards/{000..127}.tar`, `*.parquet`).
    Or an iterable of paths, bytes and Pillow pictures, of captions, of pairs, or of mappings with key, image and text.
    `model`: a name with its `pretrained` weights (tag or file), or a CLIP with weights of your own.

    A run that was stopped, at whatever moment, goes on where it was when it is called again, and ends with the same
    files. What cannot be embedded is left out, counted, and listed with its reason in rejects.jsonl; what belongs to no
    sample, or to a part of one that is not asked for, in unused.jsonl.
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
    """`embed` with its options in one piece."""
    from clip_models.inference.encoder import Encoder

    output = local_path(output, "output")
    run = _Run(source, config, progress)  # before the model: it fails sooner
    if isinstance(model, str):
        weights = os.fspath(pretrained) if pretrained else None
        encoder = Encoder.load(
            model,
            weights,
            config.precision,
            config.device,
            quick_gelu=config.quick_gelu,
            image_mode=config.image_mode,
        )
    else:
        encoder = Encoder(model, config.precision, config.image_mode)
    return run.execute(encoder, os.fspath(output))


class _Run:
    encoder: Encoder
    folder: PartFolder
    unused: UnusedList

    def __init__(self, source: Any, config: EmbedConfig, progress: bool) -> None:
        self.source = source
        self.samples = open_source(source, config, self._needs)
        self.config = config
        self.progress = progress
        self.kinds = config.kinds
        self.workers = config.workers or min(16, os.cpu_count() or 1)

    def execute(self, encoder: Encoder, output: str) -> EmbedSummary:
        self.encoder = encoder
        described = self._describe()
        fingerprint = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
        self.folder = PartFolder(output, described, fingerprint)
        totals: Counter[str] = Counter()
        rejected: Counter[str] = Counter()
        building = _Building()
        with (
            progress_bar(unit=" samples", unit_scale=True, show=self.progress) as bar,
            self.folder.list_unused() as self.unused,
            self._feed() as items,
        ):
            for item in items:
                if not isinstance(item, _PartEnd):
                    key, future = item
                    self._take(building, key, future.result())
                    bar.update()
                    continue
                part = item.done or self._finish(building, item)
                if item.done and self.progress:
                    bar.initial += part.samples  # not work of this run: it does not count for the rate
                    bar.update(part.samples)
                building = _Building()
                totals.update(samples=part.samples, rows=part.rows, truncated=part.truncated, parts=1)
                rejected.update(code for _, code, _ in part.rejects)
                bar.set_postfix(rejected=rejected.total(), refresh=False)
        summary = EmbedSummary(
            output=str(self.folder.root),
            samples=totals["samples"],
            rows=totals["rows"],
            rejected=dict(sorted(rejected.items())),
            unused=dict(sorted(self.unused.counts.items())),
            truncated=totals["truncated"],
            parts=totals["parts"],
        )
        if self.folder.read_part(summary.parts) is not None:
            raise self._changed(summary.parts)
        self.folder.write_rejects(summary.parts)
        counts = {key: value for key, value in dataclasses.asdict(summary).items() if key != "output"}
        self.folder.write_manifest({"complete": True, **counts})
        return summary

    def _describe(self) -> dict[str, Any]:
        """What must not change while a run is continued."""
        config, encoder = self.config, self.encoder
        is_path = isinstance(self.source, str | os.PathLike)
        return {
            "source": _absolute(os.fspath(self.source)) if is_path else "an iterable",
            "model": encoder.spec.name,
            "embed_dim": encoder.spec.embed_dim,
            "spec_sha256": encoder.spec_fingerprint,
            "weights_sha256": encoder.digest,
            **{f.name: getattr(config, f.name) for f in dataclasses.fields(EmbedConfig) if f.name not in FREE},
        }

    def _take(self, building: _Building, key: str, found: Any) -> None:
        if isinstance(found, _Reject):
            building.rejects.append((_utf8(key), found.code, _utf8(found.reason)))
            return
        building.keys.append(_utf8(key))
        building.batch.append(found)
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

    def _finish(self, building: _Building, end: _PartEnd) -> Part:
        import torch

        if building.batch:
            self._encode(building)
        arrays = {}
        for kind in self.kinds:
            made = building.features.get(kind)
            array = torch.cat(made).cpu().numpy() if made else np.empty((0, self.encoder.spec.embed_dim), np.float32)
            with np.errstate(over="ignore"):  # looked at in the next line
                arrays[kind] = array.astype(self.config.dtype)
            if not np.isfinite(arrays[kind]).all():
                row = int(np.flatnonzero(~np.isfinite(arrays[kind]).all(axis=1))[0])
                raise ClipModelsError(
                    f"the {kind} embedding of {building.keys[row]} is not finite in {self.config.precision} and"
                    f" {self.config.dtype}; use precision fp32 or bf16, and dtype float32"
                )
        part = Part(
            number=end.number,
            samples=end.samples,
            source=end.source,
            rows=len(building.keys),
            truncated=building.truncated,
            rejects=tuple(building.rejects),
            files={},
        )
        self.folder.write_part(part, building.keys, arrays, self.config.format)
        return part

    @contextmanager
    def _feed(self) -> Iterator[Iterator[Any]]:
        """(key, future of what `_prepare` makes of it) of each sample to be done, in order, and a _PartEnd after each
        part. A bounded number of samples is under way at any time.
        """
        ready: queue.Queue[Any] = queue.Queue(2 * self.config.batch_size + self.workers)
        stopped = threading.Event()

        def put(item: Any) -> None:
            while not stopped.is_set():
                try:
                    return ready.put(item, timeout=0.1)
                except queue.Full:
                    continue
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
        rows = self.config.part_rows
        number, count, digest = 0, 0, hashlib.blake2b(digest_size=16)
        done = self.folder.read_part(0)

        def end() -> None:
            if done is not None and (done.samples, done.source) != (count, digest.hexdigest()):
                raise self._changed(number)
            put(_PartEnd(number, count, digest.hexdigest(), done))

        for sample in self.samples:
            if isinstance(sample, Unused):
                self.unused.add(_utf8(sample.name), sample.reason)
                continue
            text = sample.text if isinstance(sample.text, bytes) else b""
            if isinstance(sample.text, str):
                text = sample.text.encode("utf-8", "surrogatepass")
            digest.update(b"%b\0%b\0" % (sample.key.encode("utf-8", "surrogatepass"), text))
            count += 1
            if done is None:
                if sample.in_turn:
                    sample = dataclasses.replace(sample, image=_called(sample.image), text=_called(sample.text))
                future: Future[Any] = pool.submit(self._prepare, sample)
                put((sample.key, future))
            if count == rows:
                end()
                number, count, digest = number + 1, 0, hashlib.blake2b(digest_size=16)
                done = self.folder.read_part(number)
        if count:
            end()

    def _needs(self, first: int, stop: int) -> bool:
        rows = self.config.part_rows
        return any(self.folder.read_part(number) is None for number in range(first // rows, (stop - 1) // rows + 1))

    def _prepare(self, sample: Sample) -> tuple[np.ndarray | None, str | None] | _Reject:
        """(pixels, caption) as far as they are embedded, or why they are not."""
        pixels = text = None
        if sample.problem:
            return _Reject(*sample.problem)
        try:
            if "text" in self.kinds:
                text = read_caption(_called(sample.text), sample.caption_field)
            if "image" in self.kinds:
                if sample.image is None:
                    return _Reject("no_image", "there is no picture")
                pixels = self._decode(_called(sample.image), sample.key)
        except (ImageError, CaptionError) as error:
            return _Reject(error.code, str(error))
        except FileNotFoundError as error:
            is_text = "text" in self.kinds and text is None
            absent = f"{error.filename} does not exist" if error.filename else first_line(error)
            return _Reject("no_caption" if is_text else "missing", absent)
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
                raise ImageError(f"{key} is of type {type(image).__name__}, not a picture", "undecodable")
            mode, name = self.config.image_mode, key if isinstance(image, bytes) else ""  # a path names itself
            image = load_image(image, max_pixels=self.config.max_pixels, image_mode=mode, name=name)
        return self.encoder.pixels(image)

    def _changed(self, number: int) -> ClipModelsError:
        return ClipModelsError(
            f"the source is no longer what it was when part {number} of {self.folder.root} was made; restore it, or"
            " choose another folder"
        )


class _Stopped(BaseException):
    """The run has ended while the reader was at work."""


def _called(value: Any) -> Any:
    return value() if callable(value) else value


def _utf8(text: str) -> str:
    """A file name may hold bytes that are no UTF-8; they show as replacement characters."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _absolute(source: str) -> str:
    return source if "://" in source else os.path.abspath(source)
