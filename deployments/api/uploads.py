"""Receiving an upload: multipart files, or one archive, streamed to a folder of its own with bounded memory and bytes.

    request body ──▶ staging folder ──▶ (unpack) ──▶ validate.inspect ──▶ registry.publish ──▶ the folder is removed, whatever happened

Nothing of an upload that is refused or cut stays behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from pathlib import Path

from fastapi import Request
from python_multipart.multipart import parse_options_header

from adapters_store.archive import unpack
from adapters_store.errors import InvalidRequest
from configs.settings import UploadSettings
from deployments.api.body import check_declared_length
from deployments.api.spool import Spool, receive_parts, receive_whole

ARCHIVE_TYPES = frozenset(
    f"application/{kind}" for kind in ("gzip", "x-gzip", "x-tar", "x-gtar", "zip", "x-zip-compressed", "octet-stream")
)
_ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip")
_ARCHIVE_NAME = "upload.archive"
_FORM_OVERHEAD_BYTES = 1 << 20  # boundaries and part headers, beyond the files' own bytes


@contextlib.asynccontextmanager
async def staging_folder(parent: Path, threads: Executor) -> AsyncIterator[Path]:
    """A new folder that is removed when the context ends."""
    loop = asyncio.get_running_loop()
    folder = parent / uuid.uuid4().hex
    await loop.run_in_executor(threads, lambda: folder.mkdir(parents=True))
    try:
        yield folder
    finally:
        await asyncio.shield(loop.run_in_executor(threads, lambda: shutil.rmtree(folder, ignore_errors=True)))


async def receive_adapter(request: Request, folder: Path, limits: UploadSettings, threads: Executor) -> Path:
    """Receive the request's body into `folder`; returns the folder that holds the adapter's files.

    Raises InvalidRequest for a body that is neither, a bad file name or a damaged archive, TooLarge as soon as it is too large.
    """
    content_type, options = parse_options_header(request.headers.get("content-type", ""))
    kind = content_type.decode("latin-1").lower()
    received = folder / "received"
    await asyncio.get_running_loop().run_in_executor(threads, received.mkdir)
    if kind == "multipart/form-data":
        check_declared_length(request, limits.max_bytes + _FORM_OVERHEAD_BYTES)
        with Spool(received, threads, max_bytes=limits.max_bytes, max_files=limits.max_files) as spool:
            await receive_parts(request, spool, options.get(b"boundary"))
    elif kind in ARCHIVE_TYPES:
        check_declared_length(request, limits.max_bytes)
        with Spool(received, threads, max_bytes=limits.max_bytes, max_files=limits.max_files) as spool:
            spool.open(_ARCHIVE_NAME)
            await receive_whole(request, spool)
    else:
        raise InvalidRequest(
            f"content-type {kind or 'none'!r} is not an upload: send multipart/form-data with the adapter's files, or one .tar.gz or .zip",
            param="content-type",
        )
    return await asyncio.get_running_loop().run_in_executor(threads, _unpacked, folder, received, limits)


def _unpacked(folder: Path, received: Path, limits: UploadSettings) -> Path:
    """`received` itself, or what its only file unpacks to when that is an archive."""
    files = list(received.iterdir())
    if not files:
        raise InvalidRequest("the upload holds no file: send adapter_config.json and adapter_model.safetensors", param="files")
    if len(files) > 1 or not files[0].name.endswith((_ARCHIVE_NAME, *_ARCHIVE_SUFFIXES)):
        return received
    unpacked = folder / "unpacked"
    unpacked.mkdir()
    unpack(files[0], unpacked, max_bytes=limits.max_bytes, max_files=limits.max_files)
    files[0].unlink()
    return unpacked
