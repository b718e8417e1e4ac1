"""Reads from S3 past boto3: what names, their pointers and an adapter's files cost a gateway or a replica.

A call of boto3's is about 3 ms of Python, during which the loop that streams waits; the same call by obstore (Rust) is 0.4 ms, most of it
beside the interpreter. A gateway reads every name in use once a second, and a replica several files for each cold adapter.

What is told to a caller is only ever an answer. Whatever else happens (nothing is there, access is refused, the bucket lies in another
region, a certificate that boto3 was told to trust), the caller hears that there is none and asks boto3, which knows all of it and words
the error.
"""

from __future__ import annotations

import datetime
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import obstore
from obstore.store import S3Store as Bucket

from adapters_store.objects import ObjectInfo, ObjectPage

if TYPE_CHECKING:
    from obstore.store import S3Credential

REST_SECONDS = 10.0  # after a failure all is asked of boto3 for so long: what fails here mostly fails each time
TIMEOUT_SHARE = 0.05  # of what bounds a small call: boto3's tries have to fit in the rest
FILE_TIMEOUT_SECONDS = 60.0  # for a whole file, of some MB
CREDENTIALS_SECONDS = 300  # kept here; those that expire are good for 10 minutes when botocore hands them out

_CHUNK_BYTES = 1 << 20
_PLAIN_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")  # no ARN, which only boto3 can follow

Keys = tuple[str, str, str | None]  # access key id, secret access key, session token
V = TypeVar("V")

logger = logging.getLogger(__name__)


class S3Reads:
    """Reads under `prefix` of one bucket, by many threads. `credentials` tells boto3's as they are now; None where it finds none."""

    def __init__(
        self, bucket: str, prefix: str, *, endpoint: str, region: str, timeout_seconds: float, credentials: Callable[[], Keys | None]
    ) -> None:
        self._name = bucket
        self._prefix = prefix
        self._endpoint = endpoint
        self._region = region
        self._connect_seconds = TIMEOUT_SHARE * timeout_seconds
        self._credentials = credentials
        self._buckets: dict[float, Bucket] = {}  # by how long an answer may take
        self._rests_until = 0.0 if _PLAIN_BUCKET.fullmatch(bucket) else float("inf")

    def get(self, key: str) -> tuple[bytes, str] | None:
        """An object's content and etag; None when boto3 has to be asked."""

        def read(bucket: Bucket) -> tuple[bytes, str] | None:
            answer = obstore.get(bucket, key)
            etag = answer.meta["e_tag"]
            return (bytes(answer.bytes()), bare(etag)) if etag else None

        return self._read(read)

    def list_folder(self, prefix: str, limit: int) -> ObjectPage | None:
        """All objects and folders directly under `prefix`, which ends with '/', if they are at most `limit`; None as above."""

        def read(bucket: Bucket) -> ObjectPage | None:
            answer = obstore.list_with_delimiter(bucket, prefix)
            objects = [
                ObjectInfo(item["path"], item["size"], bare(item["e_tag"] or ""), item["last_modified"].timestamp())
                for item in answer["objects"]
            ]
            folders = sorted(f"{folder}/" for folder in answer["common_prefixes"])
            if len(objects) + len(folders) > limit or not all(info.etag for info in objects):
                return None
            return ObjectPage(tuple(sorted(objects, key=lambda info: info.key)), tuple(folders), None)

        return self._read(read)

    def download(self, key: str, path: Path) -> bool:
        """Write an object to the file `path`; False when boto3 has to do it, over what may be there of it."""

        def read(bucket: Bucket) -> bool:
            answer = obstore.get(bucket, key)
            with path.open("wb") as file:
                for chunk in answer.stream(min_chunk_size=_CHUNK_BYTES):
                    file.write(chunk)
            return path.stat().st_size == answer.meta["size"]

        return bool(self._read(read, FILE_TIMEOUT_SECONDS))

    def _read(self, read: Callable[[Bucket], V | None], timeout_seconds: float | None = None) -> V | None:
        if time.monotonic() < self._rests_until:
            return None
        try:
            return read(self._open(timeout_seconds or self._connect_seconds))
        except FileNotFoundError:
            return None  # or the bucket does not exist: boto3 knows which
        except Exception as error:  # whatever it is, boto3 meets it next and says what it means
            self._rests_until = time.monotonic() + REST_SECONDS
            logger.warning("fast_reads_rest", extra={"error": type(error).__name__, "seconds": REST_SECONDS})
            return None

    def _open(self, timeout_seconds: float) -> Bucket:
        # At the first read, since its threads would not outlive a fork that comes between. Two threads may both build it: one is dropped.
        bucket = self._buckets.get(timeout_seconds)
        if bucket is None:
            bucket = self._buckets[timeout_seconds] = Bucket(
                self._name,
                prefix=self._prefix or None,
                endpoint=self._endpoint,
                region=self._region,
                virtual_hosted_style_request=False,
                client_options={
                    "allow_http": self._endpoint.startswith("http://"),
                    "connect_timeout": f"{self._connect_seconds:.3f}s",
                    "timeout": f"{timeout_seconds:.3f}s",
                },
                retry_config={"max_retries": 0},
                credential_provider=self._provide,
            )
        return bucket

    def _provide(self) -> S3Credential:
        found = self._credentials()
        if found is None:
            raise LookupError("boto3 finds no credentials")
        expires_at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=CREDENTIALS_SECONDS)
        return {"access_key_id": found[0], "secret_access_key": found[1], "token": found[2], "expires_at": expires_at}


def bare(etag: str) -> str:
    """An etag without the quotes that S3 puts around it."""
    return etag.strip('"')
