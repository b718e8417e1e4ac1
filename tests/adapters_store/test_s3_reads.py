"""Reads past boto3: the same answers, and boto3's own wherever they cannot be had."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from adapters_store import s3_reads
from adapters_store.errors import NotFound, StoreUnavailable
from adapters_store.objects import open_store
from adapters_store.s3 import S3Store
from adapters_store.s3_reads import S3Reads
from tests.s3 import S3Endpoint, endpoint_at

KEYS = ("test", "test", None)
LARGE = os.urandom(5 << 20)


class NoBoto3:
    """Stands for boto3's client where boto3 must not be asked."""

    def __getattr__(self, name: str) -> None:
        raise AssertionError(f"boto3 was asked for {name}")


class NoReads:
    """Stands for the reads past boto3 where boto3 has to do it alone."""

    def get(self, key: str) -> None:
        return None

    def list_folder(self, prefix: str, limit: int) -> None:
        return None


@pytest.fixture
def filled(s3_endpoint: S3Endpoint) -> S3Store:
    store = open_store("s3://lorikeet/reads")
    assert isinstance(store, S3Store)
    store.put("large", LARGE)
    for key in ("a/one", "a/two", "a/b/three", "a/c/d/four", "z"):
        store.put(key, key.encode() * 3)
    return store


def test_what_a_request_asks_for_never_reaches_boto3(filled: S3Store, tmp_path: Path) -> None:
    filled._client = filled._transfers = NoBoto3()  # type: ignore[assignment]
    assert filled.get("a/one")[0] == b"a/onea/onea/one"
    assert [info.key for info in filled.list("a/", delimiter="/").objects] == ["a/one", "a/two"]
    filled.download("a/one", tmp_path / "one", 15)
    assert (tmp_path / "one").read_bytes() == b"a/onea/onea/one"
    filled.download("large", tmp_path / "large", len(LARGE))
    assert (tmp_path / "large").read_bytes() == LARGE


@pytest.mark.parametrize("prefix", ["a/", "a/b/", "nothing/", "z/"])
def test_answers_are_those_of_boto3(filled: S3Store, prefix: str) -> None:
    fast = filled.list(prefix, delimiter="/")
    filled._reads = NoReads()  # type: ignore[assignment]
    assert filled.list(prefix, delimiter="/") == fast


def test_an_object_is_that_of_boto3(filled: S3Store) -> None:
    fast = filled.get("a/b/three")
    filled._reads = NoReads()  # type: ignore[assignment]
    assert filled.get("a/b/three") == fast


def test_a_folder_of_more_than_a_page_is_read_page_by_page(filled: S3Store) -> None:
    first = filled.list("a/", delimiter="/", limit=3)
    assert ([info.key for info in first.objects], first.folders) == (["a/one"], ("a/b/", "a/c/"))
    assert first.next_token is not None


def test_what_is_not_there_is_told_as_boto3_tells_it(filled: S3Store) -> None:
    with pytest.raises(NotFound, match="a/none"):
        filled.get("a/none")
    with pytest.raises(StoreUnavailable, match="bucket does not exist"):
        open_store("s3://no-such-bucket-here").get("key")
    filled._client = filled._transfers = NoBoto3()  # type: ignore[assignment]
    assert filled.get("z")[0] == b"zzz"  # neither stopped the fast reads


def test_only_boto3_follows_an_arn() -> None:
    reads = S3Reads("arn:aws:s3:::x", "", endpoint="http://127.0.0.1:1", region="r", timeout_seconds=20.0, credentials=lambda: KEYS)
    assert reads.get("key") is None
    assert not reads._buckets


@contextmanager
def answering(*, refuse_fast: bool = False) -> Iterator[tuple[S3Endpoint, list[tuple[str, str]]]]:
    """A server that has one object, and whom it was asked by: ("boto3" or "fast", access key id)."""
    asked: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            by = "boto3" if "boto3" in self.headers.get("user-agent", "").lower() else "fast"
            asked.append((by, self.headers["authorization"].partition("Credential=")[2].partition("/")[0]))
            body = b"whole"
            self.send_response(500 if refuse_fast and by == "fast" else 200)
            for name, value in {"content-length": len(body), "etag": '"e"', "last-modified": "Sat, 28 Nov 2026 08:00:00 GMT"}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield endpoint_at(server.server_port), asked
        finally:
            server.shutdown()


def test_where_they_fail_boto3_answers_and_they_rest() -> None:
    with answering(refuse_fast=True) as (endpoint, asked), endpoint.in_environment():
        store = open_store("s3://lorikeet")
        assert [store.get("key") for _ in range(3)] == [(b"whole", "e")] * 3
    assert [by for by, _ in asked] == ["fast", "boto3", "boto3", "boto3"]


def test_a_file_that_they_cannot_have_is_downloaded_by_boto3(tmp_path: Path) -> None:
    with answering(refuse_fast=True) as (endpoint, asked), endpoint.in_environment():
        open_store("s3://lorikeet").download("key", tmp_path / "file", 5)
    assert [by for by, _ in asked] == ["fast", "boto3"]
    assert (tmp_path / "file").read_bytes() == b"whole"


def test_they_are_tried_again_after_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_reads, "REST_SECONDS", 0.0)
    with answering(refuse_fast=True) as (endpoint, asked), endpoint.in_environment():
        store = open_store("s3://lorikeet")
        assert [store.get("key") for _ in range(2)] == [(b"whole", "e")] * 2
    assert [by for by, _ in asked] == ["fast", "boto3", "fast", "boto3"]


def test_credentials_that_change_are_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_reads, "CREDENTIALS_SECONDS", 0)
    ids = iter(["first", "second", "third"])
    with answering() as (endpoint, asked):
        reads = S3Reads(
            "lorikeet", "", endpoint=endpoint.url, region="r", timeout_seconds=20.0, credentials=lambda: (next(ids), "secret", None)
        )
        assert [reads.get("key"), reads.get("key")] == [(b"whole", "e")] * 2
    assert [by for by, _ in asked] == ["fast", "fast"]
    assert asked[0][1] != asked[1][1]


def test_without_credentials_boto3_is_asked() -> None:
    reads = S3Reads("lorikeet", "", endpoint="http://127.0.0.1:1", region="r", timeout_seconds=20.0, credentials=lambda: None)
    assert reads.get("key") is None
