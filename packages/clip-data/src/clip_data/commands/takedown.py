"""`clip-data takedown`: samples that no selection and no stream may use again."""

from dataclasses import dataclass

from clip_core import ClipError
from clip_data.commands import Folder
from clip_data.dataset import Dataset


@dataclass(frozen=True, kw_only=True)
class Config(Folder):
    """Which samples are taken down. Shards do not change; streams that start later leave the samples out."""

    reason: str
    """why, and who has asked for it; stored with the tombstones"""
    samples: tuple[str, ...] = ()
    """uids (32 hex digits), sample keys (13 digits), or URLs, which name all rows with that URL"""
    file: str = ""
    """a text file with further samples, one per line"""
    allow_missing: bool = False
    """skip and count samples that match no row, for a list that covers several datasets"""


def run(config: Config) -> int:
    from clip_data.takedown import take_down

    names = [*config.samples]
    if config.file:
        try:
            with open(config.file, encoding="utf-8") as file:
                names += [line.strip() for line in file if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ClipError(f"cannot read {config.file}: {error}; name a text file with one sample per line") from error
    done = take_down(Dataset.open(config.dataset), names, config.reason, allow_missing=config.allow_missing)
    missing = f"; {len(done.missing):,} names match no row" if done.missing else ""
    print(f"takedown: {done.uids:,} samples in {done.rows:,} rows are taken down ({done.file}){missing}")
    return 0
