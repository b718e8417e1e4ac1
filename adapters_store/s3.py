"""The object store in an S3 bucket, or any endpoint that speaks S3 (AWS_ENDPOINT_URL). The only module that imports boto3.

Credentials, region and endpoint are boto3's to find (environment, profile, instance role). One store is shared by many threads.
Etags are kept without the quotes that S3 puts around them. What requests wait for is read past boto3 where that can be (`s3_reads.py`).
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3.session
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from adapters_store.errors import Conflict, NotFound, StoreUnavailable
from adapters_store.objects import ObjectInfo, ObjectPage, check_key
from adapters_store.s3_reads import Keys, S3Reads, bare

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ListObjectsV2OutputTypeDef

POOL_CONNECTIONS = 64  # threads that may talk to the store at once without waiting for a connection
PART_BYTES = 16 << 20
PARTS_AT_ONCE = 4
DOWNLOAD_TRIES = 3
TRANSFER_READ_TIMEOUT_SECONDS = 60.0  # an endpoint may be slow to answer the end of a multipart upload

_COPY_BYTES = 1 << 20
_ABSENT = {"NoSuchKey", "NotFound", "404"}
_CONFLICTS = {"PreconditionFailed", "412", "ConditionalRequestConflict", "OperationAborted", "409"}
_REFUSED = {"AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}

logger = logging.getLogger(__name__)


class S3Store:
    """An ObjectStore over `prefix` in `bucket`. `timeout_seconds` bounds a small call, retries included."""

    def __init__(self, bucket: str, prefix: str = "", *, timeout_seconds: float = 20.0) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        session = boto3.session.Session()
        with _store_errors(""):
            self._client = _small_calls_client(session, timeout_seconds)
            self._transfers = _transfers_client(session)
        self._reads = S3Reads(
            bucket,
            self._prefix,
            endpoint=self._client.meta.endpoint_url,
            region=self._client.meta.region_name,
            timeout_seconds=timeout_seconds,
            credentials=lambda: _keys(session),
        )
        self._transfer_config = TransferConfig(
            multipart_threshold=PART_BYTES,
            multipart_chunksize=PART_BYTES,
            max_concurrency=PARTS_AT_ONCE,
            preferred_transfer_client="classic",
        )

    @property
    def url(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def get(self, key: str) -> tuple[bytes, str]:
        if (read := self._reads.get(check_key(key))) is not None:
            return read
        with _store_errors(key):
            answer = self._client.get_object(Bucket=self._bucket, Key=self._key(key))
            with contextlib.closing(answer["Body"]) as body:
                return body.read(), bare(answer["ETag"])

    def download(self, key: str, path: Path, size_bytes: int | None = None) -> None:
        with _store_errors(key):
            if size_bytes is not None and size_bytes <= PART_BYTES:
                self._download_at_once(key, path)
            else:
                self._transfers.download_file(self._bucket, self._key(key), str(path), Config=self._transfer_config)

    def _download_at_once(self, key: str, path: Path) -> None:
        """By one GET, where boto's transfers first ask for the size and then set up threads: a round trip of every cold start."""
        if self._reads.download(check_key(key), path):
            return
        for tries_left in reversed(range(DOWNLOAD_TRIES)):
            answer = self._transfers.get_object(Bucket=self._bucket, Key=self._key(key))
            try:
                with contextlib.closing(answer["Body"]) as body, path.open("wb") as file:
                    shutil.copyfileobj(body, file, _COPY_BYTES)
                return
            except BotoCoreError as error:  # boto tries again what does not begin; this was cut on its way
                if not tries_left:
                    raise
                logger.warning("download_cut", extra={"key": key, "error": type(error).__name__})

    def head(self, key: str) -> ObjectInfo | None:
        try:
            with _store_errors(key):
                answer = self._client.head_object(Bucket=self._bucket, Key=self._key(key))
        except NotFound:
            return None
        return ObjectInfo(key, answer["ContentLength"], bare(answer["ETag"]), answer["LastModified"].timestamp())

    def put(self, key: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        condition: dict[str, Any] = {}
        if if_match is not None:
            condition["IfMatch"] = f'"{if_match}"'
        if if_absent:
            condition["IfNoneMatch"] = "*"
        try:
            with _store_errors(key):
                return bare(self._client.put_object(Bucket=self._bucket, Key=self._key(key), Body=data, **condition)["ETag"])
        except NotFound:
            raise Conflict(f"object {key!r} was removed by somebody else: read it again") from None  # S3's answer to IfMatch on nothing
        except _RetriedConflict as error:
            # The first try may have been written and its answer lost: then the condition fails over our own write.
            if (etag := self._etag_if_holding(key, data)) is not None:
                return etag
            raise Conflict(error.message) from None

    def upload(self, key: str, path: Path) -> str:
        with _store_errors(key):
            self._transfers.upload_file(str(path), self._bucket, self._key(key), Config=self._transfer_config)
        if (info := self.head(key)) is None:
            raise StoreUnavailable("an object vanished from the object store right after it was uploaded: try again")
        return info.etag

    def delete(self, key: str) -> None:
        with _store_errors(key):
            self._client.delete_object(Bucket=self._bucket, Key=self._key(key))

    def list(self, prefix: str, *, delimiter: str | None = None, start_after: str | None = None, limit: int = 1000) -> ObjectPage:
        if delimiter == "/" and prefix.endswith("/") and not start_after and (page := self._reads.list_folder(prefix, limit)) is not None:
            return page
        request: dict[str, Any] = {"Bucket": self._bucket, "Prefix": self._prefix + prefix, "MaxKeys": limit}
        if delimiter is not None:
            request["Delimiter"] = delimiter
        if start_after:
            request["StartAfter"] = self._prefix + start_after
        while True:
            with _store_errors(prefix):
                answer = self._client.list_objects_v2(**request)
            page = self._page(answer, start_after or "")
            if page.objects or page.folders or not answer["IsTruncated"]:
                return page
            # Some endpoints begin again with the folder that `start_after` names; it was left out, and with it the whole page.
            request["ContinuationToken"] = answer["NextContinuationToken"]

    def _key(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _page(self, answer: ListObjectsV2OutputTypeDef, start_after: str) -> ObjectPage:
        drop = len(self._prefix)
        objects = tuple(
            ObjectInfo(item["Key"][drop:], item["Size"], bare(item["ETag"]), item["LastModified"].timestamp())
            for item in answer.get("Contents", ())
        )
        every_folder = [item["Prefix"][drop:] for item in answer.get("CommonPrefixes", ())]
        folders = tuple(folder for folder in every_folder if folder > start_after)
        last = max([info.key for info in objects[-1:]] + every_folder[-1:], default=None)
        return ObjectPage(objects, folders, last if answer["IsTruncated"] else None)

    def _etag_if_holding(self, key: str, data: bytes) -> str | None:
        try:
            held, etag = self.get(key)
        except NotFound:
            return None
        return etag if held == data else None


class _RetriedConflict(Conflict):
    """A condition failed on a call that boto had sent more than once."""


def _small_calls_client(session: boto3.session.Session, timeout_seconds: float) -> S3Client:
    # Three tries of (1/10 + 1/6) and the pauses between them (at most 1 and 2 s) stay within the bound; a tight bound allows one try.
    attempts = 3 if timeout_seconds >= 15 else 1
    share = 1.0 if attempts == 3 else 3.0
    return _client(session, connect_seconds=share * timeout_seconds / 10, read_seconds=share * timeout_seconds / 6, attempts=attempts)


def _transfers_client(session: boto3.session.Session) -> S3Client:
    return _client(session, connect_seconds=5.0, read_seconds=TRANSFER_READ_TIMEOUT_SECONDS, attempts=3)


def _client(session: boto3.session.Session, *, connect_seconds: float, read_seconds: float, attempts: int) -> S3Client:
    config = Config(
        connect_timeout=connect_seconds,
        read_timeout=read_seconds,
        retries={"mode": "standard", "total_max_attempts": attempts},
        max_pool_connections=POOL_CONNECTIONS,
        # Newer botocore sends checksum trailers that many S3-compatible endpoints refuse.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return session.client("s3", config=config)


def _keys(session: boto3.session.Session) -> Keys | None:
    """The credentials of now; botocore renews those that expire."""
    credentials = session.get_credentials()
    if credentials is None:
        return None
    frozen = credentials.get_frozen_credentials()
    return (frozen.access_key, frozen.secret_key, frozen.token) if frozen.access_key and frozen.secret_key else None


@contextlib.contextmanager
def _store_errors(key: str) -> Iterator[None]:
    """Turn what boto says into the protocol's errors. Codes go to the log; credentials are in neither."""
    try:
        yield
    except ClientError as error:
        raise _from_answer(key, error) from None
    except (BotoCoreError, Boto3Error) as error:
        cause = error.__cause__ or error.__context__
        if isinstance(cause, ClientError):
            raise _from_answer(key, cause) from None
        logger.warning("store_failed", extra={"key": key, "error": type(error).__name__})
        raise StoreUnavailable(f"the object store did not answer ({type(error).__name__}): try again") from None


def _from_answer(key: str, error: ClientError) -> Conflict | NotFound | StoreUnavailable:
    code = str(error.response.get("Error", {}).get("Code", ""))
    if code in _ABSENT:
        return NotFound(f"object {key!r} does not exist")
    if code in _CONFLICTS:
        retried = error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0) > 0
        return (_RetriedConflict if retried else Conflict)(f"object {key!r} was changed by somebody else: read it again")
    logger.warning("store_failed", extra={"key": key, "error": code})
    if code == "NoSuchBucket":
        return StoreUnavailable("the object store's bucket does not exist: the operator has to create it or correct store.url")
    if code in _REFUSED:
        return StoreUnavailable(f"the object store refused access ({code}): the operator has to check its credentials and permissions")
    return StoreUnavailable(f"the object store answered with an error ({code or 'no code'}): try again")
