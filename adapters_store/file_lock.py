"""A lock on a file between processes (flock): the kernel frees it when its holder dies. `cache_folder.py` stands on it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class FileLock:
    """A lock that is held from the start. Made by `try_lock`."""

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd: int | None = fd

    def release(self) -> None:
        """Let go; nothing happens the second time."""
        if self._fd is None:
            return
        # Unlocking, and not just closing, also lets go of copies of the descriptor in processes that were forked meanwhile.
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        os.close(self._fd)
        self._fd = None

    def remove(self) -> None:
        """Remove the lock's file, then let go. Only for the holder of an exclusive lock: those who wait for it notice, and open anew."""
        self._path.unlink(missing_ok=True)
        self.release()


def try_lock(path: Path, *, shared: bool) -> FileLock | None:
    """Lock the file at `path`, made if absent, without waiting; None when others hold it in a way that excludes us."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        if _is_still_at(fd, path):
            return FileLock(path, fd)
        os.close(fd)  # its holder removed the file between our open and our lock


def _is_still_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False
