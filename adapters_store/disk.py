"""Whether this machine's disk has room for what is about to be put on it: asked first, so that the answer is a sentence."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from adapters_store.errors import Unavailable

KEPT_FREE_BYTES = 256 << 20  # for everything else that runs here

RETRY_SECONDS = 30.0


def check_room(folder: Path, size_bytes: int) -> None:
    """Raises Unavailable when `size_bytes` more in `folder` would leave the disk full."""
    if shutil.disk_usage(folder).free < size_bytes + KEPT_FREE_BYTES:
        raise disk_full()


def is_disk_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def disk_full() -> Unavailable:
    return Unavailable("this gateway's disk has no room for it: try again, or free space under home", retry_after_seconds=RETRY_SECONDS)
