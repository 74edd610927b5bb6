"""The input of an end-to-end run: where its table of URLs comes from, and who serves the images meanwhile."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

from clip_core.store import Store, claim


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """Rendered scenes, a captioned folder, or an existing table of URLs."""

    kind: Literal["scenes", "folder", "table"] = "table"
    """scenes: rendered and served on loopback; folder: served on loopback; table: nothing to do, `plan.urls` exists"""
    rows: int = 4000
    """scenes: rows of the table of URLs, faulty ones included"""
    seed: int = 0
    """scenes: seed of all that is drawn"""
    folder: str = ""
    """folder: where the images are"""
    captions: str = ""
    """folder: a JSONL file with `file` (relative to the folder) and `caption` in every line"""
    columns: tuple[str, ...] = ()
    """folder: further keys of the JSONL to carry along"""
    port: int = 8765
    """scenes, folder: loopback port of the image server; it is part of the URLs, so a continued run needs the same"""

    def __post_init__(self) -> None:
        if self.kind == "folder" and not (self.folder and self.captions):
            raise ValueError("input.kind = 'folder' needs input.folder and input.captions")
        if not 1 <= self.port <= 65535:
            raise ValueError(f"input.port = {self.port} must lie between 1 and 65535")


def write_input(config: InputConfig, folder: str) -> None:
    """Writes `<folder>/urls.parquet` unless it exists. Raises ConfigError if the folder holds another table."""
    if config.kind == "table":
        return
    store = Store(folder)
    claim(store, config)
    if store.exists("urls.parquet"):
        return
    url, path = f"http://127.0.0.1:{config.port}", f"{store.url}/urls.parquet"
    if config.kind == "scenes":
        from clip_data.demo.table import write_table

        write_table(path, rows=config.rows, seed=config.seed, base_url=url)
    else:
        from clip_data.demo.folder import write_folder_table

        write_folder_table(path, config.folder, config.captions, url, columns=config.columns)


def serve(config: InputConfig) -> AbstractContextManager[object]:
    """Returns the server of the table's images; a null context for a table of real URLs."""
    from clip_data.demo.loopback import LoopbackServer

    if config.kind == "table":
        return nullcontext()
    return LoopbackServer(config.port, folder=config.folder if config.kind == "folder" else None)
