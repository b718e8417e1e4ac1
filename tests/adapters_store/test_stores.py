"""What is particular to each store: choosing one by url, what lies on disk, what S3's failures become."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters_store.errors import InvalidRequest, StoreUnavailable
from adapters_store.folder_listing import list_folder
from adapters_store.local import LocalStore
from adapters_store.objects import open_store
from adapters_store.probe import check_conditional_writes
from adapters_store.s3 import DOWNLOAD_TRIES, PART_BYTES
from tests.s3 import S3Endpoint, free_port, recorded_requests


def test_url_chooses_the_store(tmp_path: Path, s3_endpoint: S3Endpoint) -> None:
    folder = open_store(f"file://{tmp_path}/a%20b")
    assert isinstance(folder, LocalStore)
    assert (tmp_path / "a b").is_dir()
    assert open_store("s3://lorikeet/some/prefix/").url == "s3://lorikeet/some/prefix"


@pytest.mark.parametrize("url", ["", "file://", "file:///", "file://host/x", "s3://", "s3:///x", "gs://b", "/tmp/x", "s3://key:secret@b"])
def test_url_that_names_no_store_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(InvalidRequest, match="file:///folder or s3://bucket/prefix") as error:
        open_store(url)
    assert "secret" not in error.value.message


def test_stores_under_two_prefixes_of_a_bucket_do_not_see_each_other(s3_endpoint: S3Endpoint) -> None:
    one, other = open_store("s3://lorikeet/prefix-one"), open_store("s3://lorikeet/prefix-one-more")
    one.put("key", b"one")
    assert other.head("key") is None
    assert other.list("").objects == ()
    assert [info.key for info in one.list("").objects] == ["key"]


def test_missing_bucket_is_unavailable_with_a_word_for_the_operator(s3_endpoint: S3Endpoint) -> None:
    with pytest.raises(StoreUnavailable, match="bucket does not exist"):
        open_store("s3://no-such-bucket").list("")
    with pytest.raises(StoreUnavailable, match="bucket does not exist"):
        open_store("s3://no-such-bucket").put("key", b"")


def test_a_large_file_is_fetched_in_parts(s3_endpoint: S3Endpoint, tmp_path: Path) -> None:
    store = open_store("s3://lorikeet/parts")
    (tmp_path / "up").write_bytes(os.urandom(1 << 20) * (3 * PART_BYTES >> 20))
    store.upload("weights", tmp_path / "up")
    with recorded_requests(s3_endpoint.url) as requests:
        store.download("weights", tmp_path / "down")
    assert [method for method, _ in requests].count("GET") == 3
    assert (tmp_path / "down").read_bytes() == (tmp_path / "up").read_bytes()


def test_a_file_of_known_size_costs_one_question(s3_endpoint: S3Endpoint, tmp_path: Path) -> None:
    store = open_store("s3://lorikeet/known")
    store.put("weights", b"12345")
    with recorded_requests(s3_endpoint.url) as requests:
        store.download("weights", tmp_path / "down", 5)
    assert [method for method, _ in requests] == ["GET"]


@pytest.mark.parametrize("cuts", [3, 4])
def test_an_answer_that_is_cut_is_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuts: int) -> None:
    asked, whole = 0, b"0123456789" * 100_000

    class Cutting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal asked
            asked += 1
            self.send_response(200)
            self.send_header("content-length", str(len(whole)))
            self.end_headers()
            self.wfile.write(whole[:5] if asked <= cuts else whole)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Cutting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name, value in {
            "ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
            "ACCESS_KEY_ID": "a",
            "SECRET_ACCESS_KEY": "b",
        }.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        store = open_store("s3://lorikeet")
        if cuts <= DOWNLOAD_TRIES:
            store.download("weights", tmp_path / "down", len(whole))
            assert (tmp_path / "down").read_bytes() == whole
        else:
            with pytest.raises(StoreUnavailable, match="try again"):
                store.download("weights", tmp_path / "down", len(whole))
        server.shutdown()
    assert asked == 1 + DOWNLOAD_TRIES, "once past boto3, then by boto3"


def test_endpoint_that_nobody_listens_on_is_unavailable_within_the_bound(
    monkeypatch: pytest.MonkeyPatch, s3_endpoint: S3Endpoint, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    store = open_store("s3://lorikeet", timeout_seconds=1.0)
    (tmp_path / "file").write_bytes(b"x")
    started = time.monotonic()
    for call in (
        lambda: store.get("key"),
        lambda: store.head("key"),
        lambda: store.list(""),
        lambda: store.put("key", b""),
        lambda: store.delete("key"),
        lambda: check_conditional_writes(store),
    ):
        with pytest.raises(StoreUnavailable):
            call()
    assert time.monotonic() - started < 6


def test_endpoint_that_hangs_is_unavailable_within_the_bound(monkeypatch: pytest.MonkeyPatch, s3_endpoint: S3Endpoint) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        store = open_store("s3://lorikeet", timeout_seconds=1.0)
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            store.get("key")
        assert time.monotonic() - started < 2.0


def test_missing_credentials_are_unavailable(monkeypatch: pytest.MonkeyPatch, s3_endpoint: S3Endpoint) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    with pytest.raises(StoreUnavailable):
        open_store("s3://lorikeet").get("key")


def test_our_own_files_and_empty_folders_are_never_listed(local_store: LocalStore, tmp_path: Path) -> None:
    local_store.put("a/b", b"")
    (tmp_path / "store" / "empty" / "deeper").mkdir(parents=True)
    (tmp_path / "store" / ".lorikeet" / "tmp" / "unfinished").touch()
    assert [info.key for info in local_store.list("").objects] == ["a/b"]
    assert local_store.list("", delimiter="/").folders == ("a/",)
    assert local_store.list(".lorikeet/").objects == ()
    with pytest.raises(InvalidRequest):
        local_store.get(".lorikeet/tmp/unfinished")


def test_write_that_fails_leaves_the_old_content_and_no_leftover(
    local_store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_store.put("key", b"old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreUnavailable, match="disk is full"):
        local_store.put("key", b"new")
    monkeypatch.undo()
    assert local_store.get("key")[0] == b"old"
    assert list((tmp_path / "store" / ".lorikeet" / "tmp").iterdir()) == []


def test_conditional_writes_hold_between_processes(local_store: LocalStore) -> None:
    local_store.put("counter", b"0")
    program = """
import sys
from adapters_store.errors import Conflict
from adapters_store.objects import open_store
store = open_store(sys.argv[1])
for _ in range(25):
    while True:
        data, etag = store.get("counter")
        try:
            store.put("counter", b"%d" % (int(data) + 1), if_match=etag)
            break
        except Conflict:
            pass
"""
    root = Path(__file__).parents[2]
    writers = [subprocess.Popen([sys.executable, "-c", program, local_store.url], cwd=root) for _ in range(3)]
    try:
        assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    finally:
        for writer in writers:
            writer.kill()
    assert local_store.get("counter")[0] == b"75"


def test_etag_differs_between_writes_within_one_tick_of_the_clock(local_store: LocalStore) -> None:
    etags = set()
    for _ in range(50):
        etags.add(local_store.put("key", b"same size"))
        local_store.delete("key")
        etags.add(local_store.put("key", b"size same"))
    assert len(etags) == 100


def test_deletes_that_empty_a_folder_do_not_stop_who_writes_into_it(local_store: LocalStore) -> None:
    def put_and_delete(name: int) -> None:
        for _ in range(300):
            local_store.put(f"a/b/c/{name}", b"")
            local_store.delete(f"a/b/c/{name}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(put_and_delete, range(4)))
    assert local_store.list("").objects == ()


def test_a_key_below_another_is_unavailable_at_once(local_store: LocalStore) -> None:
    local_store.put("a", b"")
    for key in ("a/b", "a/b/c"):
        with pytest.raises(StoreUnavailable, match="cannot be used"):
            local_store.put(key, b"")


def test_folder_that_cannot_be_used_is_unavailable_without_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailable) as error:
        LocalStore(tmp_path / "file" / "store")
    assert str(tmp_path) not in error.value.message


def test_folder_that_went_away_is_unavailable_and_not_empty(local_store: LocalStore, tmp_path: Path) -> None:
    local_store.put("key", b"")
    (tmp_path / "store").rename(tmp_path / "unmounted")
    for call in (
        lambda: local_store.get("key"),
        lambda: local_store.head("key"),
        lambda: local_store.list(""),
        lambda: local_store.delete("key"),
        lambda: local_store.put("key", b""),
    ):
        with pytest.raises(StoreUnavailable):
            call()


segment = st.text(alphabet="ab-.0~", min_size=1, max_size=3).filter(lambda text: text not in (".", ".."))
keys = st.sets(st.lists(segment, min_size=1, max_size=3).map("/".join), max_size=12)


@given(keys=keys, prefix=st.text(alphabet="ab/", max_size=3), start_after=st.text(alphabet="ab/-", max_size=4))
def test_folder_listing_is_what_sorting_the_keys_gives(tmp_path_factory: pytest.TempPathFactory, keys, prefix, start_after) -> None:
    root = tmp_path_factory.mktemp("listing")
    kept = [key for key in keys if not any(other.startswith(f"{key}/") for other in keys)]
    for key in kept:
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).touch()
    matching = sorted(key for key in kept if key.startswith(prefix))
    after = [key for key in matching if key > start_after]
    assert list(list_folder(root, prefix, folders=False, start_after=start_after, hidden=".lorikeet")) == after
    rolled = {prefix + head + slash for key in matching for head, slash, _ in [key[len(prefix) :].partition("/")]}
    expected = sorted(key for key in rolled if key > start_after)
    assert list(list_folder(root, prefix, folders=True, start_after=start_after, hidden=".lorikeet")) == expected
