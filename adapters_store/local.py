"""The object store in a folder: the embedded default. Several processes on one machine may share it.

An object is a plain file at its key, so that a folder can be read, copied and backed up with ordinary tools:

    <root>/adapters/acme/support/aliases.json
    <root>/.lorikeet/tmp, locks      ours: written but unfinished objects, and one lock file per group of keys

Every write is a new file that is renamed over the old one, so a reader sees the old content or the new, whole. Writers of one key hold
its lock while they compare the etag and rename, which makes the conditional puts safe across processes; the kernel frees the lock
when a process dies. Deleting prunes the folders it leaves empty; an empty folder is never listed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import stat
import time
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path

from adapters_store.errors import Conflict, InvalidRequest, NotFound, StoreUnavailable
from adapters_store.folder_listing import list_folder
from adapters_store.objects import ObjectInfo, ObjectPage, check_key

OURS = ".lorikeet"  # the one name at the root that is no key
TMP_FOLDER = OURS + "/tmp"  # noqa: S108 - the store's own

_LOCKS = 64  # keys share this many lock files, so that locks do not grow with keys
_COPY_BYTES = 1 << 20
_TRIES = 100  # to put an object into a folder that others prune
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
_FULL = (errno.ENOSPC, errno.EDQUOT)

logger = logging.getLogger(__name__)


class LocalStore:
    """An ObjectStore over `root`, which is made if absent. `timeout_seconds` bounds the wait for another writer of the same key."""

    def __init__(self, root: Path, *, timeout_seconds: float = 20.0) -> None:
        self._root = root.absolute()
        self._tmp = self._root / TMP_FOLDER
        self._locks = self._root / OURS / "locks"
        self._timeout_seconds = timeout_seconds
        with _writing("(the root)"):
            self._tmp.mkdir(parents=True, exist_ok=True)
            self._locks.mkdir(exist_ok=True)

    @property
    def url(self) -> str:
        return self._root.as_uri()

    def get(self, key: str) -> tuple[bytes, str]:
        with self._reading(key), self._path(key).open("rb") as file:
            return file.read(), _etag(os.fstat(file.fileno()))

    def download(self, key: str, path: Path, size_bytes: int | None = None) -> None:
        with self._reading(key):
            source = self._path(key).open("rb")
        # Errors of writing `path` are the caller's disk, not the store: they pass as they are.
        with source, path.open("xb") as target:
            shutil.copyfileobj(source, target, _COPY_BYTES)

    def head(self, key: str) -> ObjectInfo | None:
        path = self._path(key)
        with contextlib.suppress(NotFound), self._reading(key):
            found = path.stat()
            return None if stat.S_ISDIR(found.st_mode) else _info(key, found)
        return None

    def put(self, key: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        path = self._path(key)
        with _writing(key), self._unfinished() as unfinished:
            with unfinished.open("xb") as file:
                file.write(data)
                _flush(file.fileno())
            with self._locked(key):
                current = self.head(key)
                if if_absent and current is not None:
                    raise Conflict(f"object {key!r} exists already: read it before writing over it")
                if if_match is not None and (current is None or current.etag != if_match):
                    raise Conflict(f"object {key!r} was changed by somebody else: read it again")
                return self._replace(unfinished, path)

    def upload(self, key: str, path: Path) -> str:
        target = self._path(key)
        with path.open("rb") as source, _writing(key), self._unfinished() as unfinished:
            with unfinished.open("xb") as file:
                shutil.copyfileobj(source, file, _COPY_BYTES)
                _flush(file.fileno())
            with self._locked(key):
                return self._replace(unfinished, target)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with contextlib.suppress(NotFound), self._reading(key), self._locked(key):
            path.unlink()
            self._prune(path.parent)

    def list(self, prefix: str, *, delimiter: str | None = None, start_after: str | None = None, limit: int = 1000) -> ObjectPage:
        if delimiter not in (None, "/"):
            raise ValueError(f"delimiter {delimiter!r}: a folder store lists by '/' or by nothing")
        objects: list[ObjectInfo] = []
        folders: list[str] = []
        last = ""
        with self._reading(prefix):
            for key in list_folder(self._root, prefix, folders=delimiter is not None, start_after=start_after or "", hidden=OURS):
                if len(objects) + len(folders) == limit:
                    return ObjectPage(tuple(objects), tuple(folders), last)
                last = key
                if key.endswith("/"):
                    folders.append(key)
                elif (info := self.head(key)) is not None:  # None: deleted since
                    objects.append(info)
            if not last:
                self._tmp.stat()  # nothing found: is the store there at all?
        return ObjectPage(tuple(objects), tuple(folders), None)

    def _path(self, key: str) -> Path:
        """Where `key` lies. A key can never leave the root or reach our own files."""
        segments = check_key(key).split("/")
        if segments[0] == OURS:
            raise InvalidRequest(f"object key {key!r} is not valid: {OURS}/ is where the store keeps its own files")
        return self._root.joinpath(*segments)

    @contextlib.contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        """NotFound for what is absent from a store that is there; StoreUnavailable for all else. Paths go to the log only."""
        try:
            yield
        except OSError as error:
            if error.errno in _ABSENT and self._tmp.is_dir():  # an unmounted volume is a store that is away, not one that is empty
                raise NotFound(f"object {key!r} does not exist") from None
            raise _unavailable(key, error) from None

    @contextlib.contextmanager
    def _unfinished(self) -> Iterator[Path]:
        """A place, on the same file system, for an object that is not whole yet."""
        path = self._tmp / uuid.uuid4().hex
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """Hold the lock of `key` against every thread and process. It is held for microseconds, so polling is enough."""
        deadline = time.monotonic() + self._timeout_seconds
        fd = os.open(self._locks / f"{zlib.crc32(key.encode()) % _LOCKS:02d}", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            while not _try_lock(fd):
                if time.monotonic() > deadline:
                    raise StoreUnavailable("the object store is busy: another process holds its lock for too long")
                time.sleep(0.001)
            yield
        finally:
            os.close(fd)

    def _replace(self, unfinished: Path, path: Path) -> str:
        """Rename `unfinished` to `path`, durably; its etag. The caller holds the key's lock."""
        # The kernel's own time stamps are coarse (4 ms), and inodes are used again: stamp so that no two contents share an etag.
        stamp_ns = time.time_ns()
        with contextlib.suppress(OSError):
            stamp_ns = max(stamp_ns, path.stat().st_mtime_ns + 1)
        os.utime(unfinished, ns=(stamp_ns, stamp_ns))
        etag = _etag(unfinished.stat())
        self._into_place(unfinished, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            _flush(folder)
        finally:
            os.close(folder)
        return etag

    def _into_place(self, unfinished: Path, path: Path) -> None:
        """Rename `unfinished` to `path` and make its folders, as often as deletes of other keys prune them in between."""
        for _ in range(_TRIES):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                unfinished.replace(path)
            except FileNotFoundError:
                continue
            except FileExistsError:  # mkdir says so of a folder too that was there when it made it and is gone when it looks again
                if path.parent.exists() and not path.parent.is_dir():
                    raise
            else:
                return
        raise StoreUnavailable("the object store is busy: its folders are being removed while they are written")

    def _prune(self, folder: Path) -> None:
        """Remove `folder` and its parents as far as they are empty; rmdir never removes one that a put has just filled."""
        while folder != self._root:
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent


def _info(key: str, found: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key=key, size_bytes=found.st_size, etag=_etag(found), modified_at=found.st_mtime)


def _etag(found: os.stat_result) -> str:
    return f"{found.st_mtime_ns:x}-{found.st_size:x}-{found.st_ino:x}"


def _flush(fd: int) -> None:
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot sync a folder
            raise


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _writing(key: str) -> Iterator[None]:
    """Turn what the file system says into StoreUnavailable. Paths go to the log only."""
    try:
        yield
    except OSError as error:
        raise _unavailable(key, error) from None


def _unavailable(key: str, error: OSError) -> StoreUnavailable:
    logger.warning("store_failed", extra={"key": key, "error": str(error)})
    if error.errno in _FULL:
        return StoreUnavailable("the object store's disk is full: the operator has to free space on it")
    return StoreUnavailable(f"the object store's folder cannot be used ({error.strerror or type(error).__name__}): try again")
