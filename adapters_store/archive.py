"""An uploaded archive, .tar.gz, .tar or .zip, unpacked into a folder of plain files.

Before `validate.py` in an upload. Archives come from anyone: the bounds are on what is really unpacked, not on what the archive says of
itself, and every member is judged by name before a byte of it is written. One folder around all files is taken off, so that
`tar czf adapter.tgz my_adapter/` works; what macOS adds is skipped.
"""

from __future__ import annotations

import gzip
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, cast

from adapters_store.adapter_files import check_file_name as check_file_name
from adapters_store.errors import InvalidRequest, TooLarge
from adapters_store.strict_json import quote
from adapters_store.tar import BLOCK_BYTES, ByteSource, TarReader

CHUNK_BYTES = 1 << 20
TAR_OVERHEAD_BYTES = 8 << 20  # headers, padding and skipped members beside max_bytes of files
MAX_ZIP_READ_BYTES = 1 << 20  # zipfile reads the whole directory at once; also its largest read of a member


def unpack(archive: Path, into: Path, *, max_bytes: int, max_files: int) -> tuple[str, ...]:
    """Unpack `archive` into the existing folder `into`; returns the file names written.

    The kind of archive is known by content. Nothing is written outside `into`; after an error `into` may hold some of the files and
    is to be thrown away. Blocks: run it in a thread.

    Raises:
        TooLarge: at the first byte beyond `max_bytes` or the first file beyond `max_files`.
        InvalidRequest: damaged, encrypted, not an archive, or with members other than plain files in at most one folder.
    """
    unpacked = _Unpacked(into, max_bytes, max_files)
    with archive.open("rb") as file:
        magic = file.read(BLOCK_BYTES)
        file.seek(0)
        if magic.startswith(b"\x1f\x8b"):
            _unpack_gzip(file, unpacked)
        elif magic.startswith(b"PK"):
            _unpack_zip(file, unpacked)
        elif magic[257:262] == b"ustar":
            _unpack_tar(file, unpacked)
        else:
            raise InvalidRequest("the upload is neither .tar.gz, .tar nor .zip: pack the adapter's folder as one of these.", param="files")
    if not unpacked.names:
        raise InvalidRequest("the archive holds no files: pack the adapter's folder.", param="files")
    return tuple(unpacked.names)


class _Unpacked:
    """What has been unpacked so far, and the rules for the next member."""

    def __init__(self, into: Path, max_bytes: int, max_files: int) -> None:
        self._into = into
        self.max_bytes = max_bytes
        self._max_files = max_files
        self._max_members = 4 * max_files + 16  # with folders and what is skipped
        self._members = 0
        self._bytes = 0
        self._folder: str | None = None  # the one around all files; "" for none
        self.names: dict[str, None] = {}

    def admit(self, path: str, kind: str) -> str | None:
        """The file name under which a member is to be written, or None for one to skip. Raises for one that may not be there."""
        self._members += 1
        if self._members > self._max_members:
            raise TooLarge(f"the archive has more than {self._max_members} members: pack the adapter's folder alone.", param="files")
        parts = path.split("/")
        while parts and parts[0] == ".":
            parts = parts[1:]
        if parts and parts[-1] == "" and kind == "folder":
            parts = parts[:-1]
        if ".." in parts or "" in parts or "\\" in path:  # an absolute path starts with an empty part
            raise InvalidRequest(
                f"the archive's member {quote(path)} does not stay in its folder: use plain relative names.", param="files"
            )
        if kind not in ("file", "folder"):
            raise InvalidRequest(f"the archive's member {quote(path)} is {kind}: pack regular files alone.", param="files")
        if kind == "folder" or _is_from_macos(parts):
            return None
        return self._admit_file(path, parts)

    def _admit_file(self, path: str, parts: list[str]) -> str:
        if not parts or len(parts) > 2:
            raise InvalidRequest(f"the archive's member {quote(path)} lies in a nested folder: pack one folder of files.", param="files")
        folder = parts[0] if len(parts) == 2 else ""
        if self._folder is not None and folder != self._folder:
            raise InvalidRequest(f"the archive's member {quote(path)} lies in a second folder: pack one folder of files.", param="files")
        self._folder = folder
        name = check_file_name(parts[-1])
        if name in self.names:
            raise InvalidRequest(f"the archive has {quote(name)} twice: pack each file once.", param="files")
        if len(self.names) == self._max_files:
            raise TooLarge(f"the archive has more than {self._max_files} files: pack the adapter alone.", param="files")
        self.names[name] = None
        return name

    def write(self, name: str, chunks: Iterable[bytes]) -> None:
        with (self._into / name).open("xb") as file:
            for chunk in chunks:
                self._bytes += len(chunk)
                if self._bytes > self.max_bytes:
                    raise TooLarge(
                        f"the archive unpacks to more than {self.max_bytes} bytes: upload a smaller adapter, or raise uploads.max_bytes.",
                        param="files",
                    )
                file.write(chunk)


def _is_from_macos(parts: list[str]) -> bool:
    return bool(parts) and (parts[0] == "__MACOSX" or parts[-1].startswith("._") or parts[-1] == ".DS_Store")


def _unpack_gzip(file: BinaryIO, unpacked: _Unpacked) -> None:
    """A tar inside gzip. Read to its end, where gzip's checksum stands."""
    try:
        with gzip.GzipFile(fileobj=file) as decompressed:
            source = _Bounded(decompressed, unpacked.max_bytes)
            _unpack_tar(source, unpacked)
            while source.read(CHUNK_BYTES):
                pass
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(error) from None


class _Bounded:
    """A decompressing source that stops with TooLarge, however much a few bytes unpack to."""

    def __init__(self, source: gzip.GzipFile, max_bytes: int) -> None:
        self._source = source
        self._max_bytes = max_bytes
        self._left_bytes = max_bytes + TAR_OVERHEAD_BYTES

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        self._left_bytes -= len(data)
        if self._left_bytes < 0:
            raise TooLarge(f"the archive unpacks to more than {self._max_bytes} bytes: upload a smaller adapter.", param="files")
        return data


def _unpack_tar(source: ByteSource, unpacked: _Unpacked) -> None:
    reader = TarReader(source)
    for member in reader.members():
        name = unpacked.admit(member.path, member.kind)
        if name is not None:
            unpacked.write(name, reader.data())


def _unpack_zip(file: BinaryIO, unpacked: _Unpacked) -> None:
    try:
        with zipfile.ZipFile(cast(BinaryIO, _SmallReads(file))) as archive:
            for info in archive.infolist():
                name = unpacked.admit(info.filename, _zip_kind(info))
                if name is not None:
                    with archive.open(info) as member:
                        unpacked.write(name, iter(lambda member=member: member.read(CHUNK_BYTES), b""))  # type: ignore[misc]
    except (zipfile.BadZipFile, EOFError, zlib.error, struct.error, NotImplementedError, ValueError, RuntimeError) as error:
        raise _damaged(error) from None


def _zip_kind(info: zipfile.ZipInfo) -> str:
    mode = info.external_attr >> 16
    if info.flag_bits & 0x1:
        return "encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "compressed in a way that is not read here"  # their decompressors do not bound what one read gives
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a link or device"
    return "folder" if info.is_dir() else "file"


class _SmallReads:
    """The file under a ZipFile, with a bound on one read: a zip's directory is read whole, and its size is the archive's word."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1, /) -> bytes:
        if size < 0:
            here = self._file.tell()
            size = max(0, os.fstat(self._file.fileno()).st_size - here)
        if size > MAX_ZIP_READ_BYTES:
            raise TooLarge("the archive's directory is too large: pack the adapter's folder alone.", param="files")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_SET and offset < 0:
            raise zipfile.BadZipFile("an offset before the file")
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True


def _damaged(error: Exception) -> InvalidRequest:
    return InvalidRequest(f"the archive is damaged or truncated ({type(error).__name__}): pack and upload it again.", param="files")
