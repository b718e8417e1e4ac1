"""A resumable upload as data: which files are announced, in which parts they come, and session.json, as which a store keeps it.

The announced files decide the upload's id, so that announcing the same again, at any gateway and after any crash of the client, is the
same upload: a client needs to remember nothing. `upload_sessions.py` keeps them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapters_store.adapter import AdapterFile, version_of
from adapters_store.adapter_files import check_file_name, listed_faults
from adapters_store.errors import InternalError, InvalidAdapter, InvalidRequest, TooLarge

FORMAT = 1
ID_DIGITS = 32
MAX_PARTS = 10_000  # in one upload: ten pages of a listing

_ID = re.compile(rf"[0-9a-f]{{{ID_DIGITS}}}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class UploadSession:
    """An upload that was begun. Times are in seconds since the epoch."""

    id: str
    key_id: str  # the key that began it; no other may go on with it
    owner: str
    name: str
    files: tuple[AdapterFile, ...]
    part_bytes: int
    created_at: float
    expires_at: float

    @property
    def version(self) -> str:
        return version_of(self.files)

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def parts_of(self, file: int) -> int:
        """How many parts file number `file` comes in; none if it is empty."""
        return -(-self.files[file].size_bytes // self.part_bytes)

    def part_size_bytes(self, file: int, part: int) -> int:
        """What part number `part` holds: `part_bytes`, the last one what is left. Raises InvalidRequest where there is no such part."""
        parts = self.parts_of(file)
        if not 0 <= part < parts:
            raise InvalidRequest(f"{self.files[file].name} has no part {part}: its parts are 0 to {parts - 1}", param="part")
        return min(self.part_bytes, self.files[file].size_bytes - part * self.part_bytes)

    def file_number(self, name: str) -> int:
        """Where the file `name` stands in `files`. Raises InvalidRequest for one that was not announced."""
        for number, file in enumerate(self.files):
            if file.name == name:
                return number
        raise InvalidRequest(f"the file {name[:120]!r} was not announced when the upload was begun: begin one that names it", param="file")


def session_id(key_id: str, owner: str, name: str, files: Sequence[AdapterFile]) -> str:
    return hashlib.sha256(json.dumps([key_id, owner, name, version_of(files)]).encode()).hexdigest()[:ID_DIGITS]


def check_session_id(text: str) -> str:
    """`text` if it may be an upload's id, and so part of a key. Raises InvalidRequest."""
    if not _ID.fullmatch(text):
        raise InvalidRequest(f"upload {text[:120]!r} is not an id: give the `id` that the upload was begun with", param="upload")
    return text


def check_announced(files: Sequence[AdapterFile], *, max_bytes: int, max_files: int, part_bytes: int) -> None:
    """Judge what a client wants to send, before a byte of it: names, kinds, sizes.

    Raises:
        TooLarge: too many files, bytes or parts.
        InvalidAdapter: files that no adapter may hold, or that one lacks; all of them.
        InvalidRequest: a name twice, a size or digest that is none.
    """
    if len(files) > max_files:
        raise TooLarge(f"the upload holds {len(files)} files, at most {max_files} are taken: upload the adapter alone", param="files")
    size_bytes = sum(file.size_bytes for file in files)
    if size_bytes > max_bytes:
        raise TooLarge(
            f"the upload holds {size_bytes} bytes, at most {max_bytes} are taken: upload a smaller adapter, or raise uploads.max_bytes",
            param="files",
        )
    if size_bytes > part_bytes * (MAX_PARTS - max_files):
        raise TooLarge(f"the upload would come in more than {MAX_PARTS} parts: raise uploads.part_bytes", param="files")
    for file in files:
        check_file_name(file.name)
        if file.size_bytes < 0 or not _SHA256.fullmatch(file.sha256):
            raise InvalidRequest(f"file {file.name}: give its size_bytes and its sha256 in 64 lower-case hex digits", param="files")
    if len({file.name for file in files}) != len(files):
        raise InvalidRequest("the upload names a file twice: names are distinct", param="files")
    if faults := list(listed_faults({file.name: file.size_bytes for file in files})):
        raise InvalidAdapter(faults, param="files")


def write_session(session: UploadSession) -> bytes:
    body = {
        "format": FORMAT,
        "owner": session.owner,
        "name": session.name,
        "files": [{"name": file.name, "size_bytes": file.size_bytes, "sha256": file.sha256} for file in session.files],
        "part_bytes": session.part_bytes,
        "created_at": session.created_at,
        "expires_at": session.expires_at,
    }
    return json.dumps(body).encode()


def read_session(data: bytes, key_id: str, upload: str) -> UploadSession:
    """The upload that `data` describes. Raises InternalError when it is damaged, or another's."""
    try:
        body: Mapping[str, Any] = json.loads(data)
        files = tuple(AdapterFile(check_file_name(str(f["name"])), int(f["size_bytes"]), str(f["sha256"])) for f in body["files"])
        session = UploadSession(
            upload, key_id, str(body["owner"]), str(body["name"]), files, int(body["part_bytes"]),
            float(body["created_at"]), float(body["expires_at"]),
        )  # fmt: skip
    except (ValueError, TypeError, KeyError, InvalidRequest):
        raise InternalError(f"the record of upload {upload} is damaged: cancel it and begin again") from None
    if session.part_bytes < 1 or session_id(key_id, session.owner, session.name, files) != upload:
        raise InternalError(f"the record of upload {upload} is damaged: cancel it and begin again")
    return session
