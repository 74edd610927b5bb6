"""Files of the Hugging Face hub, in the cache that the hub's own library reads.

Files in the cache are used without a request. For others huggingface_hub requests the metadata (address, hash, commit,
login); the bytes come through clip_models.weights.download, because that library does not check hashes. HF_ENDPOINT,
HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE and HF_TOKEN are respected.
"""

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from clip_core import Store
from clip_models.errors import ClipModelsError, first_line
from clip_models.weights import download
from clip_models.weights.registry import PretrainedTag

WEIGHTS_NAMES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Files with weights, in the order of preference, in a repository or a folder."""
ABSENT = object()
Place = str | os.PathLike[str] | None
_TAGGED_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Files in the repository of a tag; its model.safetensors, if any, is timm's image tower alone."""


def download_pretrained(
    cfg: PretrainedTag | dict[str, Any], prefer_hf_hub: bool = True, cache_dir: Place = None
) -> Path:
    """Returns the local weights of a tag (a row, or the dictionary of `get_pretrained_cfg`), preferably from the hub.

    `prefer_hf_hub=False` prefers the copy at its URL. Raises ClipModelsError.
    """
    tag = cfg if isinstance(cfg, PretrainedTag) else PretrainedTag.from_cfg(cfg)
    if tag.url and not (tag.hub and prefer_hf_hub):
        return download.download_pretrained_from_url(tag.url, cache_dir, tag.sha256)
    if not tag.hub:
        raise ClipModelsError("this pretrained configuration has neither hf_hub nor url")
    if not tag.file:
        return find_file(tag.hub, _TAGGED_NAMES, tag.revision, cache_dir)
    safe = str(Path(tag.file).with_suffix(".safetensors"))
    return find_file(tag.hub, dict.fromkeys((safe, tag.file)), tag.revision, cache_dir)


def download_weights(repo: str, revision: str | None = None, cache_dir: Place = None) -> Path:
    """Returns the local copy of a repository's weights, the first of WEIGHTS_NAMES, with its parts beside it."""
    path = find_file(repo, WEIGHTS_NAMES, revision, cache_dir)
    if path.name.endswith(".index.json"):
        try:
            parts = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ClipModelsError(f"{path} is not an index of weights; name another repository or a file") from error
        for part in sorted(map(str, parts)):
            download_file(repo, part, commit_of(path), cache_dir)
    return path


def find_file(
    repo: str, names: Sequence[str] | dict[str, None], revision: str | None = None, cache_dir: Place = None
) -> Path:
    """Returns the local copy of the first of `names` that the repository has.

    The next name is tried only if the hub answers that a file does not exist. Raises ClipModelsError if none exists, or
    if the hub does not answer.
    """
    for name in names:
        if isinstance(path := _look_up(repo, name, revision, cache_dir), Path):
            return path
    for name in names:
        if (path := _download(repo, name, revision, cache_dir)) is not None:
            return path
    raise ClipModelsError(f"{repo} on the hub has none of {', '.join(names)}; name another repository or a file")


def download_file(repo: str, filename: str, revision: str | None = None, cache_dir: Place = None) -> Path:
    """Returns the local copy of one file of a repository. Raises ClipModelsError."""
    return find_file(repo, (filename,), revision, cache_dir)


def find_optional(repo: str, filename: str, revision: str | None = None, cache_dir: Place = None) -> Path | None:
    """Returns the same as `download_file`, or None if the repository has no such file."""
    cached = _look_up(repo, filename, revision, cache_dir)
    if isinstance(cached, Path):
        return cached
    return None if cached is ABSENT else _download(repo, filename, revision, cache_dir)


def _look_up(repo: str, filename: str, revision: str | None, cache_dir: Place) -> Any:
    """Returns the copy in the hub's cache, ABSENT if the cache knows that there is no such file, else None."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for name in (filename, revision or ""):
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise ClipModelsError(f"{name!r} of {repo} would be outside the cache and is not fetched")
    try:
        found = try_to_load_from_cache(repo, filename, cache_dir=_cache(cache_dir), revision=revision)
    except HFValidationError as error:
        raise ClipModelsError(f"{repo!r} is not a repository of the hub; the form is hf-hub:org/name") from error
    return Path(found) if isinstance(found, str) else None if found is None else ABSENT


def commit_of(path: Path) -> str:
    """Returns the commit of a file of the cache in the top folder of its repository."""
    return path.parent.name


def _cache(cache_dir: Place) -> Path:
    from huggingface_hub import constants

    return Path(cache_dir) if cache_dir is not None else Path(constants.HF_HUB_CACHE)


def _download(repo: str, filename: str, revision: str | None, cache_dir: Place) -> Path | None:
    """Downloads one file into the cache; returns None if the hub answers that there is no such file."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError
    from huggingface_hub.utils import build_hf_headers

    revision = revision or constants.DEFAULT_REVISION
    if constants.HF_HUB_OFFLINE:
        raise ClipModelsError(
            f"{filename} of {repo} is not in the cache {_cache(cache_dir)} and HF_HUB_OFFLINE is set;"
            " unset it, or name the cache_dir that has it"
        )
    endpoint = os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")
    url = hf_hub_url(repo, filename, revision=revision, endpoint=endpoint)
    headers = build_hf_headers(library_name="clip-models")
    folder = _cache(cache_dir) / f"models--{repo.replace('/', '--')}"
    try:
        found = get_hf_file_metadata(url, timeout=download.TIMEOUT_S, headers=headers, endpoint=endpoint)
    except EntryNotFoundError as error:
        response = getattr(error, "response", None)
        of = response.headers.get("X-Repo-Commit", "") if response is not None else ""
        if re.fullmatch(r"\w+", of):
            absence = folder / ".no_exist" / of / filename
            absence.parent.mkdir(parents=True, exist_ok=True)
            absence.touch()
            _refer(folder, revision, of)
        return None
    except Exception as error:  # the exceptions of the HTTP library, which changes from release to release
        raise _explain(repo, filename, revision, endpoint, error) from error
    commit, etag = found.commit_hash or "", found.etag or ""
    if not all(re.fullmatch(r"\w[\w-]*", value) for value in (commit, etag)):
        raise ClipModelsError(f"{endpoint} does not answer like a hub for {repo}; check HF_ENDPOINT")
    own = {"Authorization": headers["authorization"]} if "authorization" in headers else {}
    same_host = urlsplit(found.location).netloc == urlsplit(endpoint).netloc
    blob = download.fetch(
        found.location,
        folder / "blobs" / etag,
        digest=etag if len(etag) in (40, 64) else "",
        size=found.size,
        headers=own if same_host else {},
    )
    pointer = folder / "snapshots" / commit / filename
    _point(pointer, blob)
    _refer(folder, revision, commit)
    return pointer


def _refer(folder: Path, revision: str, commit: str) -> None:
    """Stores which commit a branch or tag is at."""
    if revision != commit:
        Store(folder / "refs").write_bytes(revision, commit.encode())


def _point(pointer: Path, blob: Path) -> None:
    """Makes the file of a commit a link to its content, or a copy where links are not supported."""
    if pointer.exists():
        return
    pointer.parent.mkdir(parents=True, exist_ok=True)
    temporary = pointer.with_name(f".{pointer.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError:
        shutil.copyfile(blob, temporary)
    os.replace(temporary, pointer)


def _explain(repo: str, filename: str, revision: str, endpoint: str, error: Exception) -> ClipModelsError:
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    what = f"{filename} of {repo}"
    login = "log in with 'hf auth login'"
    if isinstance(error, GatedRepoError):
        return ClipModelsError(f"{repo} requires that you accept its conditions at {endpoint}/{repo}, and {login}")
    if isinstance(error, RepositoryNotFoundError):
        return ClipModelsError(f"there is no repository {repo} at {endpoint}, or it is private; check it, or {login}")
    if isinstance(error, RevisionNotFoundError):
        return ClipModelsError(f"{repo} has no revision {revision!r}; name one of its commits, branches or tags")
    if isinstance(error, HfHubHTTPError):
        code = error.response.status_code if error.response is not None else "no"
        if code in (401, 403):
            return ClipModelsError(f"{endpoint} refuses {what} (HTTP {code}); {login}")
        return ClipModelsError(f"{endpoint} does not serve {what} now (HTTP {code}); try again later")
    reason = f"{type(error).__name__}: {first_line(error)}"
    return ClipModelsError(f"{endpoint} does not answer for {what} ({reason}); try again, or name a local folder")
