"""The node cache on disk: what lies where, who may touch it, what is evicted. Several replicas on one node share the folder.

    <root>/<version>/<files>             a whole, verified adapter: what the engine loads
    <root>/.pulls/<version>/<files>      being downloaded; renamed to the above when whole
    <root>/.trash/<random>               evicted, being removed
    <root>/.locks/<version>.use          shared: somebody uses the version; exclusive: it is being evicted. Dated by last use
    <root>/.locks/<version>.pull         exclusive: somebody downloads it. Taken only under a shared .use lock

Locks are the kernel's (file_lock.py), so a process that dies holds nothing; what it left in .pulls and .trash is swept. Calls here
are quick or block: `cache.py` says which run in threads.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
import uuid
from pathlib import Path

from adapters_store.adapter import Adapter
from adapters_store.file_lock import FileLock, try_lock

logger = logging.getLogger(__name__)


class CacheFolder:
    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._pulls = self._root / ".pulls"
        self._trash = self._root / ".trash"
        self._locks = self._root / ".locks"
        self._sizes: dict[str, int] = {}  # bytes of each whole version: it never changes, so it is measured once
        for folder in (self._pulls, self._trash, self._locks):
            folder.mkdir(parents=True, exist_ok=True)

    def path(self, version: str) -> Path:
        return self._root / version

    def pull_path(self, version: str) -> Path:
        """Where the holder of the version's pull lock gathers its files."""
        return self._pulls / version

    def lock_use(self, version: str) -> FileLock | None:
        """Keep `version` from being evicted, present or not; None in the moment in which it is being evicted."""
        lock = try_lock(self._use_path(version), shared=True)
        if lock is not None:
            self.touch(version)
        return lock

    def lock_pull(self, version: str) -> FileLock | None:
        """Become the one that downloads `version`; None while another process does. The caller holds its use lock."""
        return try_lock(self._locks / f"{version}.pull", shared=False)

    def touch(self, version: str) -> None:
        """Note that `version` was used now."""
        now_ns = time.time_ns()  # the kernel's own stamps are coarse (4 ms): uses within one would have no order
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._use_path(version), ns=(now_ns, now_ns))

    def holds(self, adapter: Adapter) -> bool:
        """Whether every file is there in its size. The digests were verified on the way in; hashing a gigabyte per start is too slow."""
        folder = self.path(adapter.version)
        try:
            return all((folder / file.name).stat().st_size == file.size_bytes for file in adapter.files)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def begin_pull(self, version: str) -> Path:
        """An empty folder to download into. The caller holds the pull lock."""
        folder = self.pull_path(version)
        shutil.rmtree(folder, ignore_errors=True)  # what a dead process left
        folder.mkdir()
        return folder

    def end_pull(self, version: str) -> None:
        """Put the downloaded folder in its place, at once. What lay there (damaged) goes. The caller holds the pull lock."""
        self._discard(self.path(version))
        self._sizes.pop(version, None)
        self.pull_path(version).rename(self.path(version))

    def abandon_pull(self, version: str) -> None:
        shutil.rmtree(self.pull_path(version), ignore_errors=True)

    def evict_beyond(self, max_bytes: int) -> int:
        """Remove what nobody uses, least recently used first, until at most `max_bytes` are left or all is in use; bytes left."""
        sizes = self._measure()
        left_bytes = sum(sizes.values()) + sum(_size_bytes(folder) or 0 for folder in _folders(self._pulls))
        if left_bytes <= max_bytes:  # nearly always: what follows looks at every version
            return left_bytes
        for version in sorted(sizes, key=self._last_used):
            if left_bytes <= max_bytes:
                break
            if self._evict(version):
                left_bytes -= sizes[version]
                logger.info("cache_evicted", extra={"version": version, "size_bytes": sizes[version]})
        return left_bytes

    def sweep(self) -> None:
        """Remove what dead processes left: half downloads that nobody works on, and evicted folders."""
        for folder in _folders(self._pulls):
            self._sweep_pull(folder.name)
        for folder in _folders(self._trash):
            shutil.rmtree(folder, ignore_errors=True)
        for lock_file in self._locks.glob("*.use"):  # of versions whose download failed
            if not self.path(lock_file.stem).exists():
                self._evict(lock_file.stem)

    def _sweep_pull(self, version: str) -> None:
        use_lock = try_lock(self._use_path(version), shared=True)  # no use of it: its date stays
        if use_lock is None:
            return  # it is being evicted; its pull lock's file may go away with it
        pull_lock = self.lock_pull(version)
        if pull_lock is not None:
            shutil.rmtree(self.pull_path(version), ignore_errors=True)
            pull_lock.release()
        use_lock.release()

    def _evict(self, version: str) -> bool:
        lock = try_lock(self._use_path(version), shared=False)
        if lock is None:
            return False  # in use, by us or by another process
        self._discard(self.path(version))
        # Nobody holds or awaits the pull lock without the use lock, which is ours.
        (self._locks / f"{version}.pull").unlink(missing_ok=True)
        lock.remove()
        return True

    def _discard(self, folder: Path) -> None:
        """Take a folder away at once (an engine never sees half of it), then remove it."""
        trash = self._trash / uuid.uuid4().hex
        with contextlib.suppress(FileNotFoundError):
            folder.rename(trash)
            shutil.rmtree(trash, ignore_errors=True)

    def _measure(self) -> dict[str, int]:
        """Bytes of each whole version that is here now. May run in several threads at once."""
        known, sizes = self._sizes, {}
        for folder in _folders(self._root):
            if folder.name.startswith("."):
                continue
            size_bytes = known.get(folder.name) or _size_bytes(folder)
            if size_bytes is not None:  # else it was evicted meanwhile
                sizes[folder.name] = size_bytes
        self._sizes = sizes
        return dict(sizes)

    def _last_used(self, version: str) -> float:
        try:
            return self._use_path(version).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _use_path(self, version: str) -> Path:
        return self._locks / f"{version}.use"


def _folders(parent: Path) -> list[Path]:
    with os.scandir(parent) as entries:
        return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]


def _size_bytes(folder: Path) -> int | None:
    """Bytes of the files directly in `folder`; None when it, or some of it, has just been removed."""
    try:
        with os.scandir(folder) as entries:
            return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
    except FileNotFoundError:
        return None
