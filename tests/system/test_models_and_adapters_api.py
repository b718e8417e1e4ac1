"""The adapters' life over HTTP: published, served, moved, listed, retired; and folders that somebody copied into the bucket."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from tests.system.refused import assert_refused
from tests.system.stack import TINY, Stack
from tests.tiny import make_random_adapter
from tests.uploading import files_of, in_folder, parts, tar_gz, zipped

OWNER = "t1-adapters"
COUNTER = itertools.count(time.time_ns() % (1 << 40))  # seeds that no run on a kept stack has used before
Make = Callable[[], dict[str, bytes]]
Found = TypeVar("Found")
NOTICED_SECONDS = 30.0


@pytest.fixture(scope="module")
def http(stack: Stack) -> Iterator[httpx.Client]:
    with stack.client() as client:
        yield client


@pytest.fixture
def make(stack: Stack, tmp_path: Path) -> Make:
    """The files of an adapter that was never there before."""

    def made() -> dict[str, bytes]:
        seed = next(COUNTER)
        folder = tmp_path / str(seed)
        make_random_adapter(folder, stack.tiny_folder, seed=seed, base_name=TINY)
        return files_of(folder)

    return made


@pytest.fixture
def name(request: pytest.FixtureRequest, http: httpx.Client) -> Iterator[str]:
    """owner/name for one test alone; retired before and after, as a kept stack has it from the last run."""
    name = f"{OWNER}/{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}"
    http.delete(f"adapters/{name}")
    yield name
    http.delete(f"adapters/{name}")


def publish(http: httpx.Client, name: str, files: dict[str, bytes]) -> str:
    """The version's digest."""
    response = http.post(f"adapters/{name}/versions", files=parts(files))
    assert response.status_code in (200, 201), response.text
    version: str = response.json()["version"]
    return version


def chat(http: httpx.Client, model: str) -> httpx.Response:
    return http.post("chat/completions", json={"model": model, "messages": "Hi", "temperature": 0, "max_tokens": 8})


def answer(http: httpx.Client, model: str) -> tuple[str, str]:
    """The exact version that answered, and its text."""
    response = chat(http, model)
    assert response.status_code == 200, response.text
    return response.headers["x-lorikeet-version"], response.json()["choices"][0]["message"]["content"]


def uploads(files: dict[str, bytes]) -> dict[str, dict[str, Any]]:
    """The same files in every form that is taken."""
    packed = in_folder("my-adapter", files)
    return {
        "multipart": {"files": parts(files)},
        "tar.gz": {"content": tar_gz(files), "headers": {"content-type": "application/gzip"}},
        "zip": {"content": zipped(files), "headers": {"content-type": "application/zip"}},
        "tar.gz with a folder": {"content": tar_gz(packed), "headers": {"content-type": "application/x-gzip"}},
        "zip with a folder": {"content": zipped(packed), "headers": {"content-type": "application/octet-stream"}},
        "tar.gz as a part": {"files": [("files", ("a.tar.gz", tar_gz(packed)))]},
        "zip as a part": {"files": [("files", ("a.zip", zipped(packed)))]},
        "chunked": {"content": iter([tar_gz(files)]), "headers": {"content-type": "application/gzip"}},
    }


def test_an_upload_in_any_form_is_the_same_version(http: httpx.Client, make: Make, name: str) -> None:
    files = make()
    first: dict[str, Any] | None = None
    for form, upload in uploads(files).items():
        response = http.post(f"adapters/{name}/versions", **upload)
        assert response.status_code == (201 if first is None else 200), (form, response.text)
        first = first or response.json()
        assert response.json() == first, form
        assert response.headers["location"] == f"/api/v1/adapters/{name}"
    assert first is not None
    assert first["id"] == f"{name}@{first['version']}"
    assert (first["base"], first["rank"], first["aliases"]) == (TINY, 8, ["production"])
    assert first["size_bytes"] == sum(map(len, files.values()))


def test_the_next_request_is_served_by_what_was_published(http: httpx.Client, make: Make, name: str) -> None:
    assert chat(http, name).status_code == 404  # and that it is unknown is not remembered for too long
    first = publish(http, name, make())
    served, text = answer(http, name)
    assert served == f"{name}@{first}"
    assert text != answer(http, TINY)[1]
    second = publish(http, name, make())
    served_next, text_next = answer(http, name)
    assert served_next == f"{name}@{second}"
    assert text_next not in (text, answer(http, TINY)[1])
    for old in (f"{name}@{first}", f"{name}@{first[:8]}"):
        assert answer(http, old) == (f"{name}@{first}", text)


def test_the_adapter_is_described_with_its_versions_newest_first(http: httpx.Client, make: Make, name: str) -> None:
    versions = [publish(http, name, make()) for _ in range(2)]
    response = http.get(f"adapters/{name}")
    found = response.json()
    assert (found["id"], found["object"], found["aliases"]) == (name, "adapter", {"production": versions[1]})
    assert [version["version"] for version in found["versions"]] == versions[::-1]
    assert all(version["base"] == TINY and version["created_by"] and version["created_at"] > 1_600_000_000 for version in found["versions"])
    assert response.headers["etag"].startswith('"')


def test_an_alias_moves_and_rolls_back(http: httpx.Client, make: Make, name: str) -> None:
    first, second = publish(http, name, make()), publish(http, name, make())
    response = http.put(f"adapters/{name}/aliases/staging", json={"version": first[:8]})
    assert response.status_code == 200, response.text
    assert response.json()["id"] == f"{name}:staging"
    assert answer(http, f"{name}:staging")[0] == f"{name}@{first}"
    assert answer(http, name)[0] == f"{name}@{second}"
    http.put(f"adapters/{name}/aliases/production", json={"version": first}).raise_for_status()
    assert answer(http, name) == answer(http, f"{name}:staging")
    assert answer(http, f"{name}:production")[0] == f"{name}@{first}"


def test_if_match_keeps_two_movers_apart(stack: Stack, http: httpx.Client, make: Make, name: str) -> None:
    first, second = publish(http, name, make()), publish(http, name, make())
    seen = http.get(f"adapters/{name}").headers["etag"]
    moved = http.put(f"adapters/{name}/aliases/production", json={"version": first}, headers={"if-match": seen})
    assert moved.status_code == 200
    assert moved.headers["etag"] != seen
    stale = http.put(f"adapters/{name}/aliases/production", json={"version": second}, headers={"if-match": seen})
    assert_refused(stack, stale, 409, ".")
    assert answer(http, name)[0] == f"{name}@{first}"
    again = http.put(f"adapters/{name}/aliases/production", json={"version": second}, headers={"if-match": moved.headers["etag"]})
    assert again.status_code == 200


def test_bad_moves_are_refused(stack: Stack, http: httpx.Client, make: Make, name: str) -> None:
    publish(http, name, make())
    to = f"adapters/{name}/aliases/production"
    for body in (b"", b"{", b"[]", b"{}", b'{"version": 7}', b'{"version": "x", "y": 1}'):
        assert_refused(stack, http.put(to, content=body), 400, "name the version to point at", param="version")
    assert_refused(stack, http.put(to, json={"version": "0" * 8}), 404, "00000000 does not exist", param="model")
    assert_refused(
        stack, http.put(f"adapters/{name}/aliases/a:b", json={"version": "0" * 8}), 400, "^alias 'a:b' is not valid", param="alias"
    )


def test_a_retired_version_is_unknown_at_once(stack: Stack, http: httpx.Client, make: Make, name: str) -> None:
    first, second = publish(http, name, make()), publish(http, name, make())
    answer(http, f"{name}@{first}")
    assert_refused(stack, http.delete(f"adapters/{name}/versions/{second}"), 409, "production")
    response = http.delete(f"adapters/{name}/versions/{first[:8]}")
    assert response.status_code == 200, response.text
    assert_refused(stack, chat(http, f"{name}@{first}"), 404, "was retired", param="model")
    assert [version["version"] for version in http.get(f"adapters/{name}").json()["versions"]] == [second]
    assert answer(http, name)[0] == f"{name}@{second}"


def test_a_retired_adapter_is_unknown_at_once_and_may_come_back(stack: Stack, http: httpx.Client, make: Make, name: str) -> None:
    files = make()
    version = publish(http, name, files)
    answer(http, name)
    assert http.delete(f"adapters/{name}").json() == {"id": name, "object": "adapter", "retired": True}
    for unknown in (name, f"{name}:production", f"{name}@{version}"):
        assert chat(http, unknown).status_code == 404, unknown
        assert http.get(f"models/{unknown}").status_code == 404, unknown
    assert_refused(stack, http.get(f"adapters/{name}"), 404, "does not exist", param="model")
    assert_refused(stack, http.delete(f"adapters/{name}"), 404, "does not exist", param="model")
    assert name not in listed(http, "adapters", owner=OWNER)
    assert publish(http, name, files) == version
    assert answer(http, name)[0] == f"{name}@{version}"


def listed(http: httpx.Client, path: str, **query: Any) -> list[str]:
    """The names on all pages."""
    names: list[str] = []
    for _ in range(100):
        response = http.get(path, params=query)
        assert response.status_code == 200, response.text
        page = response.json()
        assert len(page["data"]) <= query.get("limit", 1000)
        names += [item["id"] for item in page["data"]]
        if not page["has_more"]:
            return names
        query["after"] = names[-1]
    raise AssertionError("the listing has no end")


def test_listings_are_paged_and_whole(http: httpx.Client, make: Make, name: str) -> None:
    files = make()
    names = [f"{name}-{letter}" for letter in "abc"]
    for each in names:
        publish(http, each, files)
    try:
        for limit in (1, 2, 3, 100):
            assert [found for found in listed(http, "adapters", owner=OWNER, limit=limit) if found.startswith(name)] == names
        models = listed(http, "models", limit=3)
        assert len(models) == len(set(models))
        assert [found for found in models if found.startswith(f"{name}-")] == names
        assert {TINY, "demo/pirate"} <= set(models)
        page = http.get("adapters", params={"owner": OWNER}).json()
        item = next(item for item in page["data"] if item["id"] == names[0])
        assert (item["owner"], item["base"], item["rank"], len(item["version"])) == (OWNER, TINY, 8, 64)
    finally:
        for each in names:
            http.delete(f"adapters/{each}")
    assert not [found for found in listed(http, "adapters", owner=OWNER) if found in names]


def test_a_folder_copied_into_the_bucket_is_adopted_and_again_when_it_changes(
    stack: Stack, http: httpx.Client, make: Make, name: str
) -> None:
    name = f"{name}-{hashlib.sha256(str(http.get('adapters').headers['x-request-id']).encode()).hexdigest()[:8]}"
    store = stack.store()

    def copy(files: dict[str, bytes]) -> None:
        for file, data in files.items():
            store.put(f"adapters/{name}/{file}", data)

    try:
        copy(make())
        first, text = answer(http, name)
        assert first.startswith(f"{name}@")
        assert text != answer(http, TINY)[1]
        assert answer(http, name) == (first, text)
        found = http.get(f"adapters/{name}").json()
        assert [(version["id"], version["created_by"]) for version in found["versions"]] == [(first, "adopted")]
        assert name in listed(http, "adapters", owner=OWNER)
        copy(make())
        second, text_next = wait_for(lambda: answer(http, name), lambda found: found[0] != first)
        assert text_next != text
        assert answer(http, first) == (first, text)
        assert http.get(f"adapters/{name}").json()["aliases"] == {"production": second.partition("@")[2]}
    finally:
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            store.delete(f"adapters/{name}/{file}")
        http.delete(f"adapters/{name}")


def wait_for(ask: Callable[[], Found], wanted: Callable[[Found], bool]) -> Found:
    """The first wanted answer: nobody tells the gateway of a copied file, so it looks when its lease has run out."""
    deadline = time.monotonic() + NOTICED_SECONDS
    while not wanted(found := ask()):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def test_a_copied_folder_that_cannot_be_served_says_why(stack: Stack, http: httpx.Client, make: Make, name: str) -> None:
    store = stack.store()
    keys = [f"adapters/{name}/{file}" for file in ("adapter_config.json", "adapter_model.safetensors")]
    try:
        store.put(keys[0], make()["adapter_config.json"])
        assert_refused(stack, chat(http, name), 404, r"is not whole: adapter_model\.safetensors has not been copied", param="model")
        store.put(keys[1], make()["adapter_model.safetensors"][:-40])
        response = wait_for(lambda: chat(http, name), lambda found: found.status_code != 404)
        assert_refused(stack, response, 400, r"adapter_model\.safetensors is truncated", param="model")
    finally:
        for key in keys:
            store.delete(key)
