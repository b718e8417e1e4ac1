"""A request's body into files, as it arrives: bounded in memory, in bytes and in files, written in threads."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from adapters_store.adapter_files import check_file_name
from adapters_store.errors import InvalidRequest, TooLarge
from deployments.api.body import body_chunks, too_large

_WRITE_BYTES = 1 << 20  # collected before a thread writes it
_PART_HEADER_BYTES = 16 << 10


class Spool:
    """Files in one folder, written one after another."""

    def __init__(self, folder: Path, threads: Executor, *, max_bytes: int, max_files: int) -> None:
        self._folder = folder
        self._threads = threads
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._files: list[BinaryIO] = []
        self._open = False
        self._pending: list[tuple[BinaryIO, bytes]] = []
        self._pending_bytes = 0
        self._total_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pending.clear()
        for file in self._files:
            file.close()

    def open(self, name: str) -> None:
        """Begin the file `name`, a plain name. Raises TooLarge, InvalidRequest for a name that is there already."""
        if len(self._files) >= self._max_files:
            raise TooLarge(f"the upload holds more than {self._max_files} files, the most an adapter may have")
        try:
            self._files.append((self._folder / name).open("xb"))
        except FileExistsError:
            raise InvalidRequest(f"the upload holds two files named {name}: names are distinct", param="files") from None
        self._open = True

    def close_file(self) -> None:
        self._open = False

    def write(self, data: bytes) -> None:
        """Take the next bytes of the open file; `flush` writes them. Raises TooLarge beyond the upload's limit."""
        if not self._open:
            return
        self._total_bytes += len(data)
        if self._total_bytes > self._max_bytes:
            raise too_large(self._max_bytes)
        self._pending.append((self._files[-1], data))
        self._pending_bytes += len(data)

    async def flush(self, *, all_of_it: bool = False) -> None:
        """Write what is pending, once it is worth a thread's while."""
        if self._pending_bytes >= _WRITE_BYTES or (all_of_it and self._pending):
            pending, self._pending, self._pending_bytes = self._pending, [], 0
            await asyncio.get_running_loop().run_in_executor(self._threads, _write, pending)
        if all_of_it:
            for file in self._files:
                file.close()


def _write(pending: list[tuple[BinaryIO, bytes]]) -> None:
    for file, data in pending:
        file.write(data)


async def receive_whole(request: Request, spool: Spool) -> None:
    """The body, as it is, into the spool's open file."""
    try:
        async for chunk in body_chunks(request):
            spool.write(chunk)
            await spool.flush()
    except ClientDisconnect:
        raise InvalidRequest("the upload was cut before its end: send it again") from None
    await spool.flush(all_of_it=True)


async def receive_parts(request: Request, spool: Spool, boundary: bytes | None) -> None:
    """Each part of a multipart body that has a file name into a file of that name. Raises InvalidRequest for a damaged body."""
    if not boundary:
        raise InvalidRequest(
            "the multipart content type names no boundary: let your HTTP client set the content-type header", param="content-type"
        )
    parts = _Parts(spool)
    parser = MultipartParser(boundary, parts.callbacks())  # type: ignore[arg-type]  # its TypedDict lists them one by one
    try:
        async for chunk in body_chunks(request):
            parser.write(chunk)
            await spool.flush()
        parser.finalize()
    except FormParserError:
        raise InvalidRequest("the multipart body is damaged: let your HTTP client build it", param="files") from None
    except ClientDisconnect:
        raise InvalidRequest("the upload was cut before its end: send it again") from None
    if not parts.ended:
        raise InvalidRequest("the multipart body was cut before its end: send it again", param="files")
    await spool.flush(all_of_it=True)


class _Parts:
    """The multipart parser's callbacks."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._field = self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self.ended = False

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._headers.clear,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._spool.close_file,
            "on_end": self._on_end,
        }

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]
        self._check_header()

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._check_header()

    def _check_header(self) -> None:
        if len(self._field) + len(self._value) > _PART_HEADER_BYTES:
            raise InvalidRequest("a part of the multipart body has headers that are too long", param="files")

    def _on_header_end(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field = self._value = b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"filename")
        if name is None:
            raise InvalidRequest(
                "a part of the upload has no file name: send each file as a part named files, with its file name", param="files"
            )
        self._spool.open(check_file_name(name.decode("utf-8", "replace")))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._spool.write(data[start:end])

    def _on_end(self) -> None:
        self.ended = True
