"""Resumable uploads in the store: begin, add parts, see what has arrived, end. Calls block.

    begin ──▶ session.json ──▶ parts, in any order, through any gateway ──▶ (assembled and published: upload_assembly.py) ──▶ finish

Every part is an object, whole or absent, so nothing of an upload lives in a gateway: any of them can take the next part, and a part
that is sent again is written over by the same bytes. What a key may have open is bounded; what expires is swept.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapters_store.adapter import AdapterFile
from adapters_store.errors import Conflict, InternalError, NotFound, Overloaded
from adapters_store.layout import (
    UPLOADS_PREFIX,
    done_key,
    done_uploads_prefix,
    open_uploads_prefix,
    part_key,
    session_key,
    upload_prefix,
)
from adapters_store.objects import ObjectInfo, ObjectStore
from adapters_store.paging import folders_under, objects_under
from adapters_store.upload_session import UploadSession, check_announced, check_session_id, read_session, session_id, write_session

RETRY_SECONDS = 60.0  # what a key that has too much open is told to wait

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SessionLimits:
    max_bytes: int
    max_files: int
    part_bytes: int
    session_seconds: float
    sessions_per_key: int
    bytes_per_key: int


class UploadSessions:
    def __init__(self, store: ObjectStore, limits: SessionLimits) -> None:
        self._store = store
        self._limits = limits

    def begin(self, key_id: str, owner: str, name: str, files: Sequence[AdapterFile]) -> tuple[UploadSession, bool]:
        """The upload of these files, and whether it is new: the same key announcing the same files goes on with what it began.

        Raises:
            TooLarge, InvalidAdapter, InvalidRequest: what is announced cannot become an adapter.
            Overloaded: this key has as much open as it may.
        """
        limits = self._limits
        ordered = tuple(sorted(files, key=lambda file: file.name))
        check_announced(ordered, max_bytes=limits.max_bytes, max_files=limits.max_files, part_bytes=limits.part_bytes)
        now = time.time()
        upload = session_id(key_id, owner, name, ordered)
        wanted = UploadSession(upload, key_id, owner, name, ordered, limits.part_bytes, now, now + limits.session_seconds)
        with contextlib.suppress(NotFound):
            return self.find(key_id, owner, name, upload), False
        try:
            self._store.put(session_key(key_id, upload), write_session(wanted), if_absent=True)
        except Conflict:
            return self.find(key_id, owner, name, upload), False
        # Counted after it is written, or two that begin at once would both find room for one.
        try:
            self._check_room(key_id)
        except Overloaded:
            self._remove(key_id, upload)
            raise
        logger.info("upload_begun", extra={"upload": upload, "adapter": f"{owner}/{name}", "size_bytes": wanted.size_bytes})
        return wanted, True

    def find(self, key_id: str, owner: str, name: str, upload: str) -> UploadSession:
        """An upload that is open. Raises NotFound when this key has no such upload for this adapter, or it has expired."""
        try:
            data, _ = self._store.get(session_key(key_id, check_session_id(upload)))
        except NotFound:
            raise _unknown(upload) from None
        session = read_session(data, key_id, upload)
        if session.expires_at <= time.time():
            self._remove(key_id, upload)
            raise _unknown(upload)
        if (session.owner, session.name) != (owner, name):
            raise _unknown(upload)
        return session

    def arrived(self, session: UploadSession) -> frozenset[tuple[int, int]]:
        """The parts that are there, as (file number, part number)."""
        found = set()
        for info in objects_under(self._store, f"{upload_prefix(session.key_id, session.id)}parts/"):
            file, part = (int(number) for number in info.key.split("/")[-2:])
            if file < len(session.files) and part < session.parts_of(file) and info.size_bytes == session.part_size_bytes(file, part):
                found.add((file, part))
        return frozenset(found)

    def add_part(self, session: UploadSession, file: int, part: int, content: Path) -> None:
        """Keep `content`, a file of just the part's size, as part `part` of file number `file`."""
        assert content.stat().st_size == session.part_size_bytes(file, part)
        self._store.upload(part_key(session.key_id, session.id, file, part), content)

    def fetch_part(self, session: UploadSession, file: int, part: int, into: Path) -> None:
        """Download a part to a new file. Raises NotFound when it has not arrived."""
        self._store.download(part_key(session.key_id, session.id, file, part), into)

    def drop_file(self, session: UploadSession, file: int) -> None:
        """Forget what has arrived of a file, so that it is sent again."""
        for part in range(session.parts_of(file)):
            self._store.delete(part_key(session.key_id, session.id, file, part))

    def finish(self, session: UploadSession) -> None:
        """The upload was published, or its adapter rejected: keep what it became, for a commit that is repeated, and remove the rest."""
        self._store.put(done_key(session.key_id, session.id), json.dumps({"format": 1, "version": session.version}).encode())
        self._remove(session.key_id, session.id)
        logger.info("upload_finished", extra={"upload": session.id, "adapter": f"{session.owner}/{session.name}"})

    def finished(self, key_id: str, upload: str) -> str | None:
        """The version that a finished upload became, or None where none is known."""
        try:
            data, _ = self._store.get(done_key(key_id, check_session_id(upload)))
            return str(json.loads(data)["version"])
        except (NotFound, ValueError, KeyError, TypeError):
            return None

    def cancel(self, session: UploadSession) -> None:
        self._remove(session.key_id, session.id)
        logger.info("upload_cancelled", extra={"upload": session.id, "adapter": f"{session.owner}/{session.name}"})

    def sweep(self) -> int:
        """Remove every upload that has expired, of every key, and records of finished ones; how many. Safe beside uploads that run."""
        removed = 0
        for key_id in folders_under(self._store, UPLOADS_PREFIX):
            removed += sum(self._remove_if_expired(key_id, upload) for upload in self._open(key_id))
            for info in objects_under(self._store, done_uploads_prefix(key_id)):
                if self._is_old(info):
                    self._store.delete(info.key)
        if removed:
            logger.info("uploads_swept", extra={"removed": removed})
        return removed

    def _check_room(self, key_id: str) -> None:
        """Raises Overloaded when a key has more open than it may; those that have expired make room first."""
        count = size_bytes = 0
        for upload in self._open(key_id):
            if self._remove_if_expired(key_id, upload):
                continue
            with contextlib.suppress(NotFound, InternalError):  # ended meanwhile; damaged ones expire
                data, _ = self._store.get(session_key(key_id, upload))
                count += 1
                size_bytes += read_session(data, key_id, upload).size_bytes
        limits = self._limits
        if count > limits.sessions_per_key or size_bytes > limits.bytes_per_key:
            raise Overloaded(
                f"this key has {count - 1} uploads open, and may have {limits.sessions_per_key} with {limits.bytes_per_key} bytes in all: "
                "finish or cancel one, or wait until it expires",
                retry_after_seconds=RETRY_SECONDS,
            )

    def _remove_if_expired(self, key_id: str, upload: str) -> bool:
        try:
            data, _ = self._store.get(session_key(key_id, upload))
            expired = read_session(data, key_id, upload).expires_at <= time.time()
        except (NotFound, InternalError):
            # Parts that came after the upload had ended, or what cannot be read: old enough, and nobody waits for it.
            expired = all(self._is_old(info) for info in objects_under(self._store, upload_prefix(key_id, upload)))
        if expired:
            self._remove(key_id, upload)
        return expired

    def _is_old(self, info: ObjectInfo) -> bool:
        return info.modified_at + self._limits.session_seconds < time.time()

    def _remove(self, key_id: str, upload: str) -> None:
        """Parts first: while session.json is there, what is left of an upload is found again."""
        for info in objects_under(self._store, f"{upload_prefix(key_id, upload)}parts/"):
            self._store.delete(info.key)
        self._store.delete(session_key(key_id, upload))

    def _open(self, key_id: str) -> Iterator[str]:
        return folders_under(self._store, open_uploads_prefix(key_id))


def _unknown(upload: str) -> NotFound:
    return NotFound(
        f"there is no open upload {upload} for this adapter and key: it was finished or cancelled, or has expired. Begin it again with the "
        "same files; what is published already need not be sent",
        param="upload",
    )
