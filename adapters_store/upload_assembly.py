"""From what has arrived of a resumable upload to a folder of whole, verified files, which is validated and published like any other.

Content that a version of the same adapter holds already is not asked for: tokenizer files seldom change, and a push that is repeated sends
nothing. Only of the same adapter: over all adapters, naming a digest would be enough to get at what others uploaded.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from adapters_store.adapter import AdapterFile
from adapters_store.disk import check_room, disk_full, is_disk_full
from adapters_store.errors import Conflict, NotFound
from adapters_store.layout import file_key
from adapters_store.objects import ObjectStore
from adapters_store.upload_session import UploadSession
from adapters_store.upload_sessions import UploadSessions
from adapters_store.versions import Versions, hash_file

VERSIONS_LOOKED_AT = 64  # of one adapter, for content that is there already: one small read each, the first time

_HASH_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FileProgress:
    """What the server has of one announced file. `stored`: a version holds it, no part is needed."""

    file: AdapterFile
    stored: bool
    missing: tuple[int, ...]  # part numbers


class UploadAssembly:
    def __init__(self, store: ObjectStore, sessions: UploadSessions) -> None:
        self._store = store
        self._sessions = sessions
        self._versions = Versions(store)

    def progress(self, session: UploadSession) -> tuple[FileProgress, ...]:
        """What is there and what is missing, file by file."""
        stored, arrived = self._stored(session), self._sessions.arrived(session)
        return tuple(
            FileProgress(
                file,
                stored=file.name in stored,
                missing=()
                if file.name in stored
                else tuple(part for part in range(session.parts_of(number)) if (number, part) not in arrived),
            )
            for number, file in enumerate(session.files)
        )

    def assemble(self, session: UploadSession, into: Path) -> None:
        """Write the announced files, whole and with the announced digests, into the empty folder `into`. Needs room for them and a part.

        Raises:
            Conflict: parts are missing, or a file is not what was announced. What was wrong is forgotten: `progress` asks for it again.
            Unavailable: this machine's disk is too full.
        """
        check_room(into, session.size_bytes + session.part_bytes)
        stored = self._stored(session)
        try:
            for number, file in enumerate(session.files):
                digest = self._fetch(session, number, stored.get(file.name), into / file.name)
                if digest != file.sha256:
                    self._sessions.drop_file(session, number)
                    raise Conflict(
                        f"{file.name} as it arrived has another sha256 than was announced: it was changed while it was sent, or damaged. "
                        "Send it again, or begin a new upload with the digests of now"
                    )
        except OSError as error:
            if is_disk_full(error):
                raise disk_full() from None
            raise

    def _fetch(self, session: UploadSession, number: int, stored: str | None, target: Path) -> str:
        """Write one announced file to `target`; its sha256. `stored` is the key under which a version holds it."""
        if stored is not None:
            try:
                self._store.download(stored, target)
                return hash_file(target).sha256
            except NotFound:
                raise Conflict(f"{target.name} is no longer stored: GET the upload for what is missing, and send that") from None
        with target.open("xb") as file:
            return _copy(self._parts(session, number, target.with_name(f".{target.name}.part")), file)

    def _parts(self, session: UploadSession, number: int, piece: Path) -> Iterator[Path]:
        """The parts of a file in order, each fetched to `piece` when it is asked for and gone when the next one is."""
        for part in range(session.parts_of(number)):
            try:
                self._sessions.fetch_part(session, number, part, piece)
                yield piece
            except NotFound:
                name = session.files[number].name
                raise Conflict(f"part {part} of {name} has not arrived: GET the upload for what is missing, and send that") from None
            finally:
                piece.unlink(missing_ok=True)

    def _stored(self, session: UploadSession) -> Mapping[str, str]:
        """Announced files that a version of the adapter holds: file name to key."""
        known: dict[tuple[int, str], str] = {}
        same = self._versions.get(session.owner, session.name, session.version)
        others = itertools.islice(self._versions.all(session.owner, session.name), VERSIONS_LOOKED_AT)
        for version in [same] if same is not None else others:
            for file in version.files:
                known[file.size_bytes, file.sha256] = file_key(session.owner, session.name, version.version, file.name)
        found = {file.name: known[file.size_bytes, file.sha256] for file in session.files if (file.size_bytes, file.sha256) in known}
        return {name: key for name, key in found.items() if self._store.head(key) is not None}  # its files may have been collected


def _copy(sources: Iterator[Path], target: BinaryIO) -> str:
    digest = hashlib.sha256()
    for source in sources:
        with source.open("rb") as piece:
            while chunk := piece.read(_HASH_BYTES):
                digest.update(chunk)
                target.write(chunk)
    return digest.hexdigest()
