"""Uploads that are refused: each with its reason, stopped early when too large, and nothing of them left on disk or in the store."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters_store.objects import ObjectStore
from tests.adapters_store.adapters import module_sizes, write_adapter
from tests.system.refused import assert_refused
from tests.system.stack import MAX_RANKS, MAX_UPLOAD_BYTES, TINY, Stack
from tests.tiny import make_random_adapter
from tests.uploading import files_of, in_folder, parts, tar_gz, zipped

OWNER = "t1-refused"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Files = dict[str, bytes]
GZIP = {"content-type": "application/gzip"}


@pytest.fixture(scope="module")
def http(stack: Stack) -> Iterator[httpx.Client]:
    with stack.client() as client:
        yield client


@pytest.fixture(scope="module")
def good(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The files of an adapter that would be taken; each refusal below damages one thing of it."""
    folder = tmp_path_factory.mktemp("good")
    make_random_adapter(folder, stack.tiny_folder, seed=11, base_name=TINY)
    return files_of(folder)


@pytest.fixture(scope="module")
def store(stack: Stack) -> ObjectStore:
    return stack.store()


@pytest.fixture(autouse=True)
def nothing_left_behind(stack: Stack, http: httpx.Client, store: ObjectStore) -> Iterator[None]:
    yield
    deadline = time.monotonic() + 10
    while (left := [path.name for path in (stack.home / "uploads").iterdir()]) and time.monotonic() < deadline:
        time.sleep(0.05)  # other tests' uploads, which run at the same time when the stack is shared
    assert not left
    kept = [info.key.rpartition("/")[2] for info in store.list(f"adapters/{OWNER}/").objects]
    assert set(kept) <= {"aliases.json"}, "of a refusal its reasons are kept, and no file"
    assert not store.list(f"index/{OWNER}/").objects
    known = http.get(f"adapters/{OWNER}/x")
    assert known.status_code == 404 or (known.json()["versions"], known.json()["aliases"], known.json()["pending"]) == ([], {}, [])
    answer = http.post("chat/completions", json={"model": f"{OWNER}/x", "messages": "hi"})
    assert_refused(stack, answer, 404, f"'{OWNER}/x' does not exist", param="model")


def post(http: httpx.Client, files: Any = None, **fields: Any) -> httpx.Response:
    path = f"adapters/{OWNER}/x/versions"
    return http.post(path, files=parts(files), **fields) if files is not None else http.post(path, **fields)


def config_with(**changes: Any) -> Callable[[Files], Files]:
    return lambda good: {**good, CONFIG: json.dumps({**json.loads(good[CONFIG]), **changes}).encode()}


def weights_as(change: Callable[[bytes], bytes]) -> Callable[[Files], Files]:
    return lambda good: {**good, WEIGHTS: change(good[WEIGHTS])}


def made(tmp: Path, **fields: Any) -> Files:
    """An adapter for another model, written by hand; 32 wide, which no base of the stack is."""
    return files_of(write_adapter(tmp, **fields))


DAMAGES: dict[str, tuple[Callable[[Files], Files], str]] = {
    "a .bin instead of safetensors": (
        lambda good: {CONFIG: good[CONFIG], "adapter_model.bin": good[WEIGHTS]},
        r"adapter_model\.safetensors is missing: save .*safe_serialization=True.*'adapter_model\.bin' may hold a pickle",
    ),
    "a .bin beside the safetensors": (lambda good: {**good, "training_args.bin": b"\x80\x04."}, "'training_args.bin' may hold a pickle"),
    "no config": (lambda good: {WEIGHTS: good[WEIGHTS]}, "adapter_config.json is missing"),
    "a config that is no JSON": (lambda good: {**good, CONFIG: b"{"}, "adapter_config.json is not valid JSON"),
    "safetensors cut in the tensors": (weights_as(lambda data: data[:-40]), r"adapter_model\.safetensors is truncated: .*Upload it whole"),
    "safetensors cut in the header": (weights_as(lambda data: data[:50]), r"adapter_model\.safetensors is truncated: its header"),
    "safetensors that are none": (weights_as(lambda data: b"PK\x03\x04" * 20), "it is not a safetensors file"),
    "empty safetensors": (weights_as(lambda data: b""), "adapter_model.safetensors is empty"),
    "DoRA": (config_with(use_dora=True), "use_dora is True: DoRA is not served; train with use_dora=False"),
    "modules_to_save": (config_with(modules_to_save=["lm_head"]), r"modules_to_save is \['lm_head'\]: .*train with modules_to_save=None"),
    "a rank that is not the weights'": (config_with(r=4), r"r is 4, so A must be \[4, in\]"),
    "an architecture that is not the base's": (
        config_with(base_model_name_or_path=None, auto_mapping={"base_model_class": "MistralForCausalLM"}),
        "trained on a 'MistralForCausalLM'",
    ),
    "a file that no adapter needs": (lambda good: {**good, "run.sh": b"#!/bin/sh"}, r"'run\.sh' is not a file that an adapter needs"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "says"), DAMAGES.values(), ids=DAMAGES)
def test_an_adapter_that_cannot_be_served_is_refused(
    stack: Stack, http: httpx.Client, good: Files, damage: Callable[[Files], Files], says: str
) -> None:
    assert_refused(stack, post(http, damage(good)), 400, says)


def test_every_fault_is_told_at_once(stack: Stack, http: httpx.Client, good: Files) -> None:
    bad = {**config_with(use_dora=True, bias="all")(good), "training_args.bin": b"x"}
    response = post(http, bad)
    for says in ("use_dora is True", "bias is 'all'", "'training_args.bin'"):
        assert_refused(stack, response, 400, says)


def test_a_rank_above_the_limit_is_refused(stack: Stack, http: httpx.Client, tmp_path: Path) -> None:
    make_random_adapter(tmp_path, stack.tiny_folder, seed=1, rank=2 * MAX_RANKS[TINY], base_name=TINY)
    says = f"r is {2 * MAX_RANKS[TINY]}, base {TINY} takes up to {MAX_RANKS[TINY]}: train with a lower r, or raise lora.max_rank"
    assert_refused(stack, post(http, files_of(tmp_path)), 400, says)


def test_modules_that_the_base_lacks_are_refused(stack: Stack, http: httpx.Client, tmp_path: Path) -> None:
    sizes = {"transformer.h.0.attn.c_attn": (64, 64)}
    bad = made(tmp_path, sizes=sizes, targets=["c_attn"], base_model_name_or_path=TINY)
    assert_refused(
        stack, post(http, bad), 400, r"modules that base tiny lacks or cannot adapt: transformer\.h\.0\.attn\.c_attn; it adapts .*q_proj"
    )


def test_a_layer_that_the_base_lacks_is_refused(stack: Stack, http: httpx.Client, tmp_path: Path) -> None:
    sizes = {f"model.layers.{layer}.self_attn.q_proj": (64, 64) for layer in range(2)}
    bad = made(tmp_path, sizes=sizes, targets=["q_proj"], base_model_name_or_path=TINY)
    assert_refused(stack, post(http, bad), 400, r"modules that base tiny lacks or cannot adapt: model\.layers\.1\.self_attn\.q_proj")


@pytest.mark.parametrize("named", [TINY, "meta-llama/Llama-3-8B", None])
def test_another_bases_adapter_is_refused(stack: Stack, http: httpx.Client, tmp_path: Path, named: str | None) -> None:
    bad = made(tmp_path, sizes=module_sizes(1), base_model_name_or_path=named)
    assert_refused(stack, post(http, bad), 400, "this is another base's adapter")


@pytest.mark.parametrize("pack", [tar_gz, zipped])
@pytest.mark.parametrize("name", ["../x.json", "a/../../x.json", "/etc/x.json", "a/b/x.json", "..", "a\\..\\x.json"])
def test_an_archive_that_leaves_its_folder_is_refused(stack: Stack, http: httpx.Client, good: Files, pack: Any, name: str) -> None:
    response = post(http, content=pack({**good, name: b"{}"}), headers=GZIP)
    assert_refused(stack, response, 400, "does not stay in its folder|nested folder|second folder", param="files")


@pytest.mark.parametrize("kind", ["application/gzip", "application/zip"])
def test_a_damaged_archive_is_refused(stack: Stack, http: httpx.Client, good: Files, kind: str) -> None:
    whole = tar_gz(good) if kind == "application/gzip" else zipped(good)
    for damaged in (b"", b"garbage" * 99, whole[: len(whole) // 2]):
        assert_refused(
            stack, post(http, content=damaged, headers={"content-type": kind}), 400, "archive|neither|damaged|cut|end", param="files"
        )


@pytest.mark.parametrize("name", ["../x.json", "a/x.json", "", ".", "aliases.json", "manifest.json", "x" * 200 + ".json"])
def test_a_file_name_that_is_none_is_refused(stack: Stack, http: httpx.Client, good: Files, name: str) -> None:
    says = "file name|has no file name|is kept for the store"
    assert_refused(stack, post(http, {name: b"{}", **good}), 400, says, param="files")


def test_the_same_file_twice_is_refused(stack: Stack, http: httpx.Client, good: Files) -> None:
    assert_refused(stack, post(http, [*good.items(), (CONFIG, b"{}")]), 400, "two files named adapter_config.json", param="files")


def test_what_is_no_upload_is_refused(stack: Stack, http: httpx.Client) -> None:
    for headers, content in (
        ({"content-type": "text/plain"}, b"x"),
        ({}, b"x"),
        ({"content-type": "application/x-www-form-urlencoded"}, b"a=b"),
    ):
        assert_refused(stack, post(http, content=content, headers=headers), 400, "send multipart/form-data", param="content-type")
    response = post(http, content=b"x", headers={"content-type": "multipart/form-data"})
    assert_refused(stack, response, 400, "names no boundary", param="content-type")


def test_a_truncated_multipart_is_refused(stack: Stack, http: httpx.Client, good: Files) -> None:
    request = http.build_request("POST", f"adapters/{OWNER}/x/versions", files=parts(good))
    whole, headers = request.read(), {"content-type": request.headers["content-type"]}
    for at in (10, len(whole) // 2, len(whole) - 8):
        assert_refused(stack, post(http, content=whole[:at], headers=headers), 400, "multipart body (is damaged|was cut)", param="files")
    assert_refused(stack, post(http, content=b"garbage", headers=headers), 400, "multipart body is damaged", param="files")


def test_a_name_that_is_none_is_refused(stack: Stack, http: httpx.Client, good: Files) -> None:
    for owner, name, param in (("-x", "y", "owner"), ("x", "y:z", "name"), ("x" * 97, "y", "owner"), ("x", "y@z", "name")):
        response = http.post(f"adapters/{owner}/{name}/versions", files=parts(good))
        assert_refused(stack, response, 400, f"^{param} '{(owner if param == 'owner' else name)[:20]}", param=param)


def test_too_many_files_are_413(stack: Stack, http: httpx.Client, good: Files) -> None:
    many = {f"f{number}.json": b"{}" for number in range(70)}
    assert_refused(stack, post(http, {**good, **many}), 413, "more than 64 files")
    assert_refused(stack, post(http, content=tar_gz({**good, **many}), headers=GZIP), 413, "more than 64 files", param="files")


def test_an_upload_over_the_limit_is_413_by_its_announced_length(stack: Stack, http: httpx.Client, good: Files) -> None:
    big = bytes(MAX_UPLOAD_BYTES + 1)
    assert_refused(stack, post(http, content=big, headers=GZIP), 413, f"larger than {MAX_UPLOAD_BYTES} bytes")
    assert_refused(stack, post(http, {**good, "README.md": big}), 413, "larger than")


@pytest.mark.parametrize("pack", [tar_gz, zipped])
def test_an_archive_that_unpacks_to_too_much_is_413(stack: Stack, http: httpx.Client, good: Files, pack: Any) -> None:
    bomb = pack(in_folder("a", {**good, "README.md": bytes(4 * MAX_UPLOAD_BYTES)}))
    assert len(bomb) < MAX_UPLOAD_BYTES // 8
    response = post(http, content=bomb, headers=GZIP)
    assert_refused(stack, response, 413, f"unpacks to more than {MAX_UPLOAD_BYTES} bytes: .*uploads.max_bytes", param="files")


@pytest.mark.parametrize("kind", ["application/gzip", "multipart/form-data; boundary=b"])
def test_an_endless_upload_is_stopped_at_the_limit(stack: Stack, kind: str) -> None:
    """Chunked, so that no length is announced: the answer comes when the limit is passed, while the client still sends."""
    host, port = stack.url.removeprefix("http://").split(":")
    head = f"POST /api/v1/adapters/{OWNER}/x/versions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {stack.key}\r\n"
    part = b'--b\r\nContent-Disposition: form-data; name="files"; filename="README.md"\r\n\r\n'
    sent_mib = 0
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(f"{head}content-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        if "boundary" in kind:
            connection.sendall(b"%x\r\n" % len(part) + part + b"\r\n")
        while not select.select([connection], [], [], 0.0 if sent_mib < 9 else 0.5)[0]:
            assert sent_mib < 32, "32 MiB were sent, four times the limit, and no answer came"
            connection.sendall(b"%x\r\n" % (1 << 20) + bytes(1 << 20) + b"\r\n")
            sent_mib += 1
        answer = ""
        while "}}" not in answer and (received := connection.recv(65536)):  # the head may come before the body
            answer += received.decode()
    assert answer.startswith("HTTP/1.1 413 "), answer
    assert '"code": "request_too_large"' in answer
