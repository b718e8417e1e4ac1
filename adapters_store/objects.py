"""The object store protocol: the bucket is the database, and this is all that is asked of it.

Two stores stand behind it, `local.py` (a folder) and `s3.py` (any S3-compatible endpoint), and pass the same contract tests.
Calls block: asyncio code runs them in threads. Keys are '/'-separated, relative to the store's prefix.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from adapters_store.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """`etag` changes whenever the content does; it is opaque. `modified_at` is in seconds since the epoch."""

    key: str
    size_bytes: int
    etag: str
    modified_at: float


@dataclass(frozen=True, slots=True)
class ObjectPage:
    """One page of a listing, in key order. `folders` are the common prefixes (ending in '/') when a delimiter was given.

    `next_token` is what to pass as `start_after` for the next page, or None on the last.
    """

    objects: tuple[ObjectInfo, ...]
    folders: tuple[str, ...]
    next_token: str | None


class ObjectStore(Protocol):
    """Where adapters, aliases and keys are kept.

    Every call may raise StoreUnavailable when the store does not answer in its bound; it never raises for that reason anything else.
    """

    @property
    def url(self) -> str:
        """`file://…` or `s3://…`, for messages; never holds a credential."""
        ...

    def get(self, key: str) -> tuple[bytes, str]:
        """A small object's content and etag. Raises NotFound."""
        ...

    def download(self, key: str, path: Path, size_bytes: int | None = None) -> None:
        """Stream an object into a new file at `path`, with bounded memory. Raises NotFound.

        Who knows its size says so, which spares a question; what is there is written whole in any case.
        """
        ...

    def head(self, key: str) -> ObjectInfo | None:
        """What is known of an object, or None where there is none."""
        ...

    def put(self, key: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        """Write a small object whole or not at all; returns its etag.

        `if_match` writes only over that etag, `if_absent` only where nothing is. Raises Conflict when the condition fails.
        """
        ...

    def upload(self, key: str, path: Path) -> str:
        """Stream a file into an object (whole or not at all), with bounded memory; returns its etag."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens where there is none."""
        ...

    def list(self, prefix: str, *, delimiter: str | None = None, start_after: str | None = None, limit: int = 1000) -> ObjectPage:
        """One page of the keys under `prefix`, in key order, at most `limit` (1 to 1000) objects and folders together."""
        ...


MAX_SEGMENT_BYTES = 255  # what a file name may be
MAX_KEY_BYTES = 900  # S3 takes 1024, the store's prefix included


def check_key(key: str) -> str:
    """`key` if both stores may hold it: non-empty segments that no path reads as "here" or "up". Raises InvalidRequest otherwise."""
    bad = any(segment in ("", ".", "..") or len(segment.encode("utf-8", "replace")) > MAX_SEGMENT_BYTES for segment in key.split("/"))
    if bad or not key.isprintable() or len(key.encode()) > MAX_KEY_BYTES:
        raise InvalidRequest(
            f"object key {key[:120]!r} is not valid: use printable, non-empty segments other than '.' and '..', of at most "
            f"{MAX_SEGMENT_BYTES} bytes each and {MAX_KEY_BYTES} together"
        )
    return key


def open_store(url: str, *, timeout_seconds: float = 20.0) -> ObjectStore:
    """The store that `url` names: `file:///folder` or `s3://bucket/prefix`. `timeout_seconds` bounds one small call.

    Raises:
        InvalidRequest: the url names no store.
        StoreUnavailable: the folder cannot be made, or S3 is not set up (no region, a bad endpoint).
    """
    # Imported here: boto3 costs a second that a folder store need not pay, and both stores import this module.
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path.strip("/"):
        from adapters_store.local import LocalStore

        return LocalStore(Path(unquote(parts.path)), timeout_seconds=timeout_seconds)
    if parts.scheme == "s3" and parts.netloc and "@" not in parts.netloc and not parts.query and not parts.fragment:
        from adapters_store.s3 import S3Store

        return S3Store(parts.netloc, unquote(parts.path), timeout_seconds=timeout_seconds)
    raise InvalidRequest("store.url names no store: use file:///folder or s3://bucket/prefix, without credentials", param="store.url")
