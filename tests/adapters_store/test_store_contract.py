"""What both stores promise: every test here runs over a folder and over S3."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapters_store.errors import Conflict, InvalidRequest, NotFound
from adapters_store.objects import ObjectStore
from adapters_store.probe import check_conditional_writes, check_listing_order


def test_what_was_put_is_got_with_its_etag(store: ObjectStore) -> None:
    etag = store.put("a/b.json", b"hello")
    assert store.get("a/b.json") == (b"hello", etag)
    info = store.head("a/b.json")
    assert info is not None
    assert (info.key, info.size_bytes, info.etag) == ("a/b.json", 5, etag)
    assert store.list("a/").objects == (info,)


def test_etag_changes_with_every_content(store: ObjectStore) -> None:
    etags = [store.put("key", content) for content in (b"one", b"two", b"six", b"ten")]
    assert len(set(etags)) == 4


def test_what_is_absent_is_not_found(store: ObjectStore, tmp_path: Path) -> None:
    store.put("folder/object", b"x")
    for key in ("absent", "folder", "folder/absent"):
        assert store.head(key) is None
        with pytest.raises(NotFound):
            store.get(key)
        with pytest.raises(NotFound):
            store.download(key, tmp_path / "absent")
        store.delete(key)
    assert not (tmp_path / "absent").exists()
    assert store.get("folder/object")[0] == b"x"


def test_put_if_absent_never_writes_over(store: ObjectStore) -> None:
    store.put("key", b"first", if_absent=True)
    with pytest.raises(Conflict):
        store.put("key", b"second", if_absent=True)
    assert store.get("key")[0] == b"first"


def test_put_if_match_writes_only_over_that_etag(store: ObjectStore) -> None:
    first = store.put("key", b"first")
    second = store.put("key", b"second", if_match=first)
    with pytest.raises(Conflict):
        store.put("key", b"third", if_match=first)
    assert store.get("key") == (b"second", second)


def test_put_if_match_over_nothing_is_a_conflict(store: ObjectStore) -> None:
    etag = store.put("key", b"first")
    store.delete("key")
    with pytest.raises(Conflict):
        store.put("key", b"second", if_match=etag)
    assert store.head("key") is None


def test_of_many_conditional_writers_one_wins(store: ObjectStore) -> None:
    etag = store.put("key", b"start")
    together = threading.Barrier(8)

    def write(number: int) -> bool:
        together.wait(timeout=10)
        try:
            store.put("key", b"%d" % number, if_match=etag)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(write, range(8))) == 1


def test_probe_finds_that_promises_are_kept_and_leaves_nothing(store: ObjectStore) -> None:
    assert check_conditional_writes(store) is True
    assert check_listing_order(store) is True
    assert store.list("").objects == ()


@pytest.mark.parametrize("size_bytes", [0, 5, 1 << 30], ids=["too few", "right", "too many"])
def test_a_file_comes_back_whole_whatever_its_size_was_thought_to_be(store: ObjectStore, tmp_path: Path, size_bytes: int) -> None:
    store.put("small/file", b"12345")
    store.download("small/file", tmp_path / "down", size_bytes)
    assert (tmp_path / "down").read_bytes() == b"12345"
    with pytest.raises(NotFound):
        store.download("small/other", tmp_path / "absent", size_bytes)


def test_a_large_file_comes_back_as_it_went(store: ObjectStore, tmp_path: Path) -> None:
    content = os.urandom(1 << 20) * 40  # above S3's multipart threshold
    (tmp_path / "up").write_bytes(content)
    etag = store.upload("big/file", tmp_path / "up")
    store.download("big/file", tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == content
    info = store.head("big/file")
    assert info is not None
    assert (info.size_bytes, info.etag) == (len(content), etag)
    assert store.list("big/").objects[0].etag == etag


def test_delete_removes_and_is_silent_about_what_is_absent(store: ObjectStore) -> None:
    store.put("a/b/c", b"")
    store.delete("a/b/c")
    store.delete("a/b/c")
    assert store.head("a/b/c") is None
    assert store.list("").objects == ()
    assert store.list("", delimiter="/").folders == ()


@pytest.mark.parametrize("key", ["", "/etc/passwd", "a//b", "a/../../b", "..", "./a", "a/", "a\0b", "x" * 256, "a\nb"])
def test_a_key_that_could_leave_the_store_is_refused(store: ObjectStore, key: str) -> None:
    for call in (store.get, store.head, store.delete, lambda key: store.put(key, b"")):
        with pytest.raises(InvalidRequest):
            call(key)


KEYS = ["a", "a-b/x", "a.b", "a/x", "a/y/1", "a/y/2", "a0", "b/é", "b/z", "c%2Fd"]


def _fill(store: ObjectStore) -> None:
    for key in KEYS:
        if key != "a":  # a folder cannot hold both `a` and `a/x`
            store.put(key, b"")


def _all(store: ObjectStore, prefix: str, limit: int, delimiter: str | None = None) -> list[str]:
    found: list[str] = []
    after: str | None = None
    while True:
        page = store.list(prefix, delimiter=delimiter, start_after=after, limit=limit)
        assert len(page.objects) + len(page.folders) <= limit
        found += sorted([*(info.key for info in page.objects), *page.folders])
        if page.next_token is None:
            return found
        after = page.next_token


@pytest.mark.parametrize("limit", [1, 2, 3, 1000])
def test_listing_pages_through_every_key_in_order(store: ObjectStore, limit: int) -> None:
    _fill(store)
    assert _all(store, "", limit) == sorted(KEYS[1:])
    assert _all(store, "a", limit) == ["a-b/x", "a.b", "a/x", "a/y/1", "a/y/2", "a0"]
    assert _all(store, "a/y/", limit) == ["a/y/1", "a/y/2"]
    assert _all(store, "nothing/", limit) == []


@pytest.mark.parametrize("limit", [1, 2, 1000])
def test_listing_with_a_delimiter_folds_what_lies_deeper(store: ObjectStore, limit: int) -> None:
    _fill(store)
    assert _all(store, "", limit, "/") == ["a-b/", "a.b", "a/", "a0", "b/", "c%2Fd"]
    assert _all(store, "a/", limit, "/") == ["a/x", "a/y/"]
    assert _all(store, "a", limit, "/") == ["a-b/", "a.b", "a/", "a0"]


def test_listing_starts_after_a_key_that_need_not_exist(store: ObjectStore) -> None:
    _fill(store)
    assert [info.key for info in store.list("", start_after="a/y/1").objects] == ["a/y/2", "a0", "b/z", "b/é", "c%2Fd"]
    assert [info.key for info in store.list("", start_after="a/y0").objects] == ["a0", "b/z", "b/é", "c%2Fd"]
    assert [info.key for info in store.list("a/", start_after="zzz").objects] == []
