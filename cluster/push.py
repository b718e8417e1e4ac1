"""Sends an adapter's folder to a server, however large it is and however often the connection breaks.

    hash ──▶ announce ──▶ send the parts that are missing, some side by side ──▶ commit
                ▲                                   │ parts were lost, or the upload has expired
                └───────────────────────────────────┘

`client.py` hands in how a call is sent. A call is tried again for a while when the connection or the server fails; all of them may be
repeated: see deployments/api/upload_parts.py.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx

from cluster.api_error import ApiError

CHUNK_BYTES = 1 << 18
PARTS_AT_ONCE = 3
TRIES = 10  # of one call, over about a minute
LONGEST_PAUSE_SECONDS = 10.0
ROUNDS = 3  # announcements of one push: parts that were lost are sent again so often
PART_TIMEOUT = httpx.Timeout(120.0, connect=10.0)

T = TypeVar("T")
Send = Callable[..., httpx.Response]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Pushed:
    """An uploaded version. `created` is False when the same content was there already; one that is not `ready` is pending."""

    id: str  # owner/name@version
    base: str
    rank: int
    size_bytes: int
    created: bool
    ready: bool = True

    @classmethod
    def read(cls, response: httpx.Response) -> Pushed:
        """What the API answers to an upload, a commit and an import."""
        row = response.json()
        created = response.status_code == httpx.codes.CREATED
        ready = response.status_code != httpx.codes.ACCEPTED
        return cls(row["id"], row["base"], row["rank"], row["size_bytes"], created=created, ready=ready)


@dataclass(frozen=True, slots=True)
class _Part:
    """Bytes of a file that one call carries; `path` is the call's."""

    file: Path
    offset: int
    size_bytes: int
    path: str


class Push:
    """One push of `folder` as a version of owner/name. `progress` gets (bytes that are there, all bytes), and never less than before.

    `labels` are the parameters of the commit's URL: alias, tags and visibility count from the moment that the version is served.
    """

    def __init__(
        self,
        send: Send,
        folder: Path,
        owner: str,
        name: str,
        progress: Progress | None = None,
        *,
        labels: Mapping[str, Any] | None = None,
    ) -> None:
        self._send = send
        self._folder = folder
        self._uploads = f"/api/v1/adapters/{owner}/{name}/uploads"
        self._labels = labels or {}
        self._progress = progress or (lambda sent, total: None)
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._there_bytes = self._shown_bytes = self._total_bytes = 0

    def run(self) -> Pushed:
        """Raises ApiError when the server refuses, or is away for too long; OSError when the files cannot be read or change meanwhile."""
        files = [_described(file) for file in _files(self._folder)]
        self._total_bytes = sum(file["size_bytes"] for file in files)
        for round_left in reversed(range(ROUNDS)):
            upload = self._patiently(lambda: self._send("POST", self._uploads, json={"files": files})).json()
            try:
                self._send_parts(self._missing(upload))
                response = self._commit(upload["id"])
            except ApiError as error:
                # 409: parts were lost. 404: it expired, or somebody cancelled it. What is there already is not sent again.
                if error.status not in (404, 409) or not round_left:
                    raise
                continue
            return Pushed.read(response)
        raise AssertionError("unreachable")

    def _commit(self, upload: str) -> httpx.Response:
        return self._patiently(lambda: self._send("POST", f"{self._uploads}/{upload}/commit", params=self._labels))

    def _missing(self, upload: dict[str, Any]) -> list[_Part]:
        part_bytes: int = upload["part_bytes"]
        parts = [
            _Part(
                self._folder / file["name"],
                number * part_bytes,
                min(part_bytes, file["size_bytes"] - number * part_bytes),
                f"{self._uploads}/{upload['id']}/files/{file['name']}/parts/{number}",
            )
            for file in upload["files"]
            for number in file["missing"]
        ]
        with self._lock:
            self._there_bytes = self._total_bytes - sum(part.size_bytes for part in parts)
        self._moved(0)
        return parts

    def _send_parts(self, parts: Sequence[_Part]) -> None:
        """Raises what the first part that cannot be sent raised; the others are stopped."""
        with ThreadPoolExecutor(PARTS_AT_ONCE, thread_name_prefix="push") as threads:
            sending = [threads.submit(self._send_part, part) for part in parts]
            try:
                for future in sending:
                    future.result()
            except BaseException:
                self._stopped.set()  # also on Ctrl-C
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    def _send_part(self, part: _Part) -> None:
        def send() -> None:
            body = _Body(part, self)
            headers = {"Content-Length": str(part.size_bytes), "Content-Type": "application/octet-stream"}
            try:
                self._send("PUT", part.path, content=iter(body), headers=headers, timeout=PART_TIMEOUT)
            except BaseException:
                self._moved(-body.told_bytes)
                raise

        self._patiently(send)

    def _patiently(self, call: Callable[[], T]) -> T:
        """Call until it succeeds, with growing pauses; raises what does not pass, or has not passed after TRIES."""
        for tried in range(1, TRIES + 1):
            try:
                return call()
            except ApiError as error:
                if not error.may_pass or tried == TRIES or self._stopped.is_set():
                    raise
                pause_seconds = max(error.retry_after_seconds, min(LONGEST_PAUSE_SECONDS, 0.1 * 2**tried))
            self._stopped.wait(min(LONGEST_PAUSE_SECONDS, pause_seconds) * random.uniform(0.75, 1.25))  # noqa: S311 - so that clients part
        raise AssertionError("unreachable")

    def _moved(self, more_bytes: int) -> None:
        with self._lock:
            self._there_bytes += more_bytes
            self._shown_bytes = max(self._shown_bytes, self._there_bytes)
            self._progress(self._shown_bytes, self._total_bytes)


class _Body:
    """A part's bytes, read while they are sent."""

    def __init__(self, part: _Part, push: Push) -> None:
        self._part = part
        self._push = push
        self.told_bytes = 0

    def __iter__(self) -> Iterator[bytes]:
        with self._part.file.open("rb") as content:
            content.seek(self._part.offset)
            while left := self._part.size_bytes - self.told_bytes:
                if self._push._stopped.is_set():
                    raise ApiError(0, "the push was stopped")
                chunk = content.read(min(CHUNK_BYTES, left))
                if not chunk:
                    raise OSError(f"{self._part.file} became shorter while it was sent: push again")
                yield chunk
                self.told_bytes += len(chunk)
                self._push._moved(len(chunk))


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))


def _described(file: Path) -> dict[str, Any]:
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
        return {"name": file.name, "size_bytes": content.tell(), "sha256": digest}
