"""A reader of tar archives that never holds more than one block and one bounded extended header.

Under `archive.py`, for uploads. The standard library's tarfile reads extended headers and sparse maps of any size into memory, which a
hostile upload can make larger than the machine; an adapter's archive needs regular files in folders and nothing else.

Formats: ustar, GNU long names (type L) and pax (types x and g), as written by GNU tar, bsdtar and Python.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from adapters_store.errors import InvalidRequest
from adapters_store.strict_json import quote

BLOCK_BYTES = 512
MAX_EXTENDED_BYTES = 1 << 20  # macOS puts a file's extended attributes into its pax header
CHUNK_BYTES = 1 << 20

_REGULAR, _FOLDER, _LONG_NAME, _PAX, _PAX_GLOBAL = (b"0", b"\0", b"7"), b"5", b"L", b"x", b"g"
_KINDS = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a FIFO", b"S": "a sparse file"}


class ByteSource(Protocol):
    """What is read from: a file, or the decompressing end of one."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class TarMember:
    """`kind` is "file", "folder", or what else it is, in words; only a file's data may be read, and before the next member is asked for."""

    path: str
    kind: Literal["file", "folder"] | str
    size_bytes: int


class TarReader:
    """Yields the members of a tar stream in order, and the data of the current one.

    Raises InvalidRequest when the stream ends early or is not tar.
    """

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._left_bytes = 0  # of the current member's data
        self._padding_bytes = 0  # after it, up to a whole block

    def members(self) -> Iterator[TarMember]:
        """Each file, folder and other thing; extended headers are applied, not yielded. Data that was not read is skipped."""
        path: str | None = None  # from extended headers, for the next member
        size_bytes: int | None = None
        while (header := self._next_header()) is not None:
            kind = header[156:157]
            stored_bytes = _number(header[124:136])
            if kind in (_PAX, _PAX_GLOBAL, _LONG_NAME):
                data = self._extended(stored_bytes)
                if kind == _LONG_NAME:
                    path = _text(data)
                elif kind == _PAX:
                    path, size_bytes = _apply_pax(data, path, size_bytes)
                continue
            is_file = kind in _REGULAR
            member_bytes = stored_bytes if size_bytes is None else size_bytes
            name = _header_path(header) if path is None else path
            self._start_data(member_bytes if is_file else stored_bytes)
            word = "folder" if kind == _FOLDER or (is_file and name.endswith("/")) else "file" if is_file else _KINDS.get(kind, "special")
            yield TarMember(name, word, member_bytes)
            path, size_bytes = None, None

    def data(self) -> Iterator[bytes]:
        """The rest of the current member's data, in chunks."""
        while self._left_bytes:
            chunk = self._source.read(min(CHUNK_BYTES, self._left_bytes))
            if not chunk:
                raise _truncated()
            self._left_bytes -= len(chunk)
            yield chunk

    def _start_data(self, size_bytes: int) -> None:
        self._left_bytes = size_bytes
        self._padding_bytes = -size_bytes % BLOCK_BYTES

    def _next_header(self) -> bytes | None:
        """The next header block, or None at the end mark (a block of zeros)."""
        for _ in self.data():
            pass
        self._exactly(self._padding_bytes)
        self._padding_bytes = 0
        header = self._exactly(BLOCK_BYTES)
        if header == bytes(BLOCK_BYTES):
            return None
        unsigned = sum(header[:148]) + sum(header[156:]) + 8 * ord(" ")
        if _number(header[148:156]) != unsigned:
            raise InvalidRequest("the archive's tar headers are damaged: make it again with `tar czf adapter.tgz FOLDER`.")
        return header

    def _extended(self, size_bytes: int) -> bytes:
        if size_bytes > MAX_EXTENDED_BYTES:
            raise InvalidRequest(
                f"the archive has a tar header of {size_bytes} bytes, at most {MAX_EXTENDED_BYTES} are read: use plain names."
            )
        data = self._exactly(size_bytes)
        self._exactly(-size_bytes % BLOCK_BYTES)
        return data

    def _exactly(self, size_bytes: int) -> bytes:
        parts = bytearray()
        while len(parts) < size_bytes:
            part = self._source.read(size_bytes - len(parts))
            if not part:
                raise _truncated()
            parts += part
        return bytes(parts)


def _truncated() -> InvalidRequest:
    return InvalidRequest("the archive is truncated: upload it whole.")


def _number(field: bytes) -> int:
    """A header's number: octal digits, or base 256 (first bit set) where they do not suffice."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & ~(0x80 << 8 * (len(field) - 1))
        if value >> 62:
            raise InvalidRequest("the archive has a tar header with an impossible number: make it again.")
        return value
    digits = field.strip(b" \0")
    if not all(digit in b"01234567" for digit in digits):
        raise InvalidRequest(f"the archive's tar headers are damaged ({quote(digits)} is no number): make it again.")
    return int(digits or b"0", 8)


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "replace")


def _header_path(header: bytes) -> str:
    name, prefix = _text(header[:100]), _text(header[345:500])
    return f"{prefix}/{name}" if header[257:263] == b"ustar\0" and prefix else name


def _apply_pax(data: bytes, path: str | None, size_bytes: int | None) -> tuple[str | None, int | None]:
    """The path and size that a pax header gives the next member; each record is `LENGTH KEY=VALUE\\n`."""
    at = 0
    while at < len(data) and data[at] != 0:
        length_text, _, _ = data[at : at + 20].partition(b" ")
        if not length_text.isdigit() or not len(length_text) < int(length_text) <= len(data) - at:
            raise InvalidRequest("the archive has a damaged pax header: make it again with `tar czf adapter.tgz FOLDER`.")
        record = data[at + len(length_text) + 1 : at + int(length_text) - 1]
        at += int(length_text)
        key, _, value = record.partition(b"=")
        if key == b"path":
            path = _text(value)
        elif key == b"size":
            if not value.isdigit() or len(value) > 18:
                raise InvalidRequest(f"the archive has a pax header with the size {quote(value)}: make it again.")
            size_bytes = int(value)
        elif key.startswith(b"GNU.sparse."):
            raise InvalidRequest("the archive has a sparse file: make it again without --sparse.")
    return path, size_bytes
