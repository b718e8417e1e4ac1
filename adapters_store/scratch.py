"""What killed processes left in scratch folders on this machine's disk: uploads half received, objects half written."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Leftover:
    path: Path
    size_bytes: int


def leftovers(folders: tuple[Path, ...], *, older_than_seconds: float) -> Iterator[Leftover]:
    """What lies in `folders` and was not written to for so long, with all that is in it."""
    for folder in folders:
        for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
            parts = [entry, *entry.rglob("*")] if entry.is_dir() and not entry.is_symlink() else [entry]
            found = [part.lstat() for part in parts if part.exists() or part.is_symlink()]
            if found and time.time() - max(status.st_mtime for status in found) >= older_than_seconds:
                yield Leftover(entry, sum(status.st_size for part, status in zip(parts, found, strict=False) if not part.is_dir()))


def remove(leftover: Leftover) -> None:
    if leftover.path.is_dir() and not leftover.path.is_symlink():
        shutil.rmtree(leftover.path, ignore_errors=True)
    else:
        leftover.path.unlink(missing_ok=True)
