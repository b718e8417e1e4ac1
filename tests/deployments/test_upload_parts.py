"""Resumable uploads over HTTP: what a client says, sends and hears."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from adapters_store import upload_sessions
from adapters_store.errors import InvalidAdapter
from adapters_store.keys import KeyRing
from adapters_store.objects import open_store
from adapters_store.validate import Fit
from deployments.api import body, resumable, upload_parts
from tests.deployments.gateway import BASE, CHAT, Gateway, gateway
from tests.deployments.tryouts import BASE_ROWS, Engine

URL = "/api/v1/adapters/acme/support/uploads"
VERSIONS = "/api/v1/adapters/acme/support/versions"
PART_BYTES = 1000
LIMITS = {
    "max_bytes": 50_000, "max_files": 5, "at_once": 1, "part_bytes": PART_BYTES, "parts_at_once": 2, "sessions_per_key": 2,
}  # fmt: skip
FILES = {"adapter_config.json": b'{"peft_type": "LORA"}', "adapter_model.safetensors": bytes(range(256)) * 10}


class Inspector:
    """Stands for the validation: keeps what it saw, refuses if told to, waits at a gate."""

    def __init__(self) -> None:
        self.seen: list[dict[str, bytes]] = []
        self.refuses = False
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, folder: Path) -> Fit:
        self.seen.append({path.name: path.read_bytes() for path in folder.iterdir()})
        self.entered.set()
        assert self.gate.wait(20)
        if self.refuses:
            raise InvalidAdapter(["Rank 64 is above 16."])
        return Fit(BASE, 8)


@pytest.fixture
def inspector() -> Inspector:
    return Inspector()


@pytest.fixture
async def uploads(tmp_path: Path, inspector: Inspector) -> AsyncIterator[Gateway]:
    async with gateway(tmp_path, inspect=inspector, uploads=LIMITS) as running:
        yield running
        inspector.gate.set()
        assert running.staged == [], "an upload left files behind"


def announcement(files: Mapping[str, bytes] = FILES) -> dict[str, Any]:
    rows = [{"name": name, "size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()]
    return {"files": rows}


async def begin(uploads: Gateway, files: Mapping[str, bytes] = FILES) -> dict[str, Any]:
    response = await uploads.client.post(URL, json=announcement(files))
    assert response.status_code in (200, 201), response.text
    return response.json()


async def send(uploads: Gateway, upload: dict[str, Any], name: str, part: int, data: bytes | None = None) -> httpx.Response:
    content = FILES[name][part * PART_BYTES :][:PART_BYTES] if data is None else data
    return await uploads.client.put(f"{URL}/{upload['id']}/files/{name}/parts/{part}", content=content)


async def send_missing(uploads: Gateway, upload: dict[str, Any]) -> None:
    for file in upload["files"]:
        for part in file["missing"]:
            assert (await send(uploads, upload, file["name"], part)).status_code == 204


async def commit(uploads: Gateway, upload: dict[str, Any]) -> httpx.Response:
    return await uploads.client.post(f"{URL}/{upload['id']}/commit")


async def test_what_is_sent_in_parts_is_published_whole(uploads: Gateway, inspector: Inspector) -> None:
    response = await uploads.client.post(URL, json=announcement())
    upload = response.json()
    assert response.status_code == 201 and response.headers["location"] == f"{URL}/{upload['id']}"
    assert (upload["object"], upload["adapter"], upload["part_bytes"]) == ("adapter.upload", "acme/support", PART_BYTES)
    assert [(file["name"], file["stored"], file["missing"]) for file in upload["files"]] == [
        ("adapter_config.json", False, [0]), ("adapter_model.safetensors", False, [0, 1, 2]),
    ]  # fmt: skip
    await send_missing(uploads, upload)
    published = await commit(uploads, upload)
    assert published.status_code == 201, published.text
    assert inspector.seen == [FILES]
    said = published.json()
    assert said["id"] == f"acme/support@{upload['version']}" and said["aliases"] == ["production"]


async def test_after_a_break_only_what_is_missing_is_asked_for(uploads: Gateway) -> None:
    upload = await begin(uploads)
    await send(uploads, upload, "adapter_model.safetensors", 1)
    again = await uploads.client.post(URL, json=announcement())
    assert (again.status_code, again.json()["id"]) == (200, upload["id"])
    shown = await uploads.client.get(f"{URL}/{upload['id']}")
    assert shown.json() == again.json()
    assert [file["missing"] for file in shown.json()["files"]] == [[0], [0, 2]]


async def test_a_commit_that_is_repeated_answers_the_same_version(uploads: Gateway, inspector: Inspector) -> None:
    upload = await begin(uploads)
    await send_missing(uploads, upload)
    first, again = await commit(uploads, upload), await commit(uploads, upload)
    assert (first.status_code, again.status_code) == (201, 200)
    assert {**first.json()} == {**again.json()}
    assert len(inspector.seen) == 1


async def test_commits_at_the_same_time_publish_once(uploads: Gateway, inspector: Inspector) -> None:
    upload = await begin(uploads)
    await send_missing(uploads, upload)
    inspector.gate.clear()
    commits = [asyncio.create_task(commit(uploads, upload)) for _ in range(4)]
    await asyncio.to_thread(inspector.entered.wait, 20)
    inspector.gate.set()
    assert {response.status_code for response in await asyncio.gather(*commits)} <= {200, 201}
    assert len(inspector.seen) == 1


async def test_a_commit_whose_client_leaves_is_finished(uploads: Gateway, inspector: Inspector) -> None:
    upload = await begin(uploads)
    await send_missing(uploads, upload)
    inspector.gate.clear()
    leaving = asyncio.create_task(commit(uploads, upload))
    await asyncio.to_thread(inspector.entered.wait, 20)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    inspector.gate.set()
    response = await commit(uploads, upload)
    assert response.status_code in (200, 201)
    assert len(inspector.seen) == 1


async def publish(uploads: Gateway, files: Mapping[str, bytes]) -> httpx.Response:
    upload = await begin(uploads, files)
    for file in upload["files"]:
        for part in file["missing"]:
            data = files[file["name"]][part * PART_BYTES :][:PART_BYTES]
            assert (await send(uploads, upload, file["name"], part, data)).status_code == 204
    return await commit(uploads, upload)


async def test_the_same_content_again_needs_no_part_and_is_production_again(uploads: Gateway, inspector: Inspector) -> None:
    first = (await publish(uploads, FILES)).json()
    await publish(uploads, {**FILES, "README.md": b"second"})
    again = await begin(uploads)
    assert [(file["stored"], file["missing"]) for file in again["files"]] == [(True, []), (True, [])]
    response = await commit(uploads, again)
    assert (response.status_code, response.json()["version"]) == (200, first["version"])
    shown = (await uploads.client.get("/api/v1/adapters/acme/support")).json()
    assert shown["aliases"] == {"production": first["version"]}
    assert len(inspector.seen) == 2, "what is published already was read again"


async def test_content_of_a_retired_version_is_published_again_without_sending_it(uploads: Gateway, inspector: Inspector) -> None:
    first = (await publish(uploads, FILES)).json()
    await publish(uploads, {**FILES, "README.md": b"second"})
    assert (await uploads.client.delete(f"/api/v1/adapters/acme/support/versions/{first['version']}")).status_code == 200
    again = await begin(uploads)
    assert not any(file["missing"] for file in again["files"])
    assert (await commit(uploads, again)).json()["version"] == first["version"]
    assert inspector.seen[-1] == FILES


async def test_a_commit_before_all_has_arrived_is_a_conflict(uploads: Gateway, inspector: Inspector) -> None:
    upload = await begin(uploads)
    response = await commit(uploads, upload)
    assert (response.status_code, response.json()["error"]["code"]) == (409, "conflict")
    assert inspector.seen == []
    await send_missing(uploads, upload)
    assert (await commit(uploads, upload)).status_code == 201


async def test_an_unfit_adapter_is_refused_and_nothing_of_it_kept(uploads: Gateway, inspector: Inspector) -> None:
    inspector.refuses = True
    upload = await begin(uploads)
    await send_missing(uploads, upload)
    response = await commit(uploads, upload)
    assert (response.status_code, response.json()["error"]["message"]) == (400, "Rank 64 is above 16.")
    assert (await uploads.client.get(f"{URL}/{upload['id']}")).status_code == 404
    (kept,) = [path for path in (uploads.uploads.parent / "store" / "uploads").rglob("*") if path.is_file()]
    assert kept.parent.name == "done" and "Rank" not in kept.read_text(), "which version it would have been is all that is kept"
    again = await commit(uploads, upload)
    assert (again.status_code, again.json()["error"]["message"]) == (400, "Rank 64 is above 16.")


async def test_a_refused_adapter_may_be_sent_again(uploads: Gateway, inspector: Inspector) -> None:
    for refuses, status in ((True, 400), (False, 201)):
        inspector.refuses = refuses
        upload = await begin(uploads)
        await send_missing(uploads, upload)
        assert (await commit(uploads, upload)).status_code == status
    assert (await commit(uploads, upload)).status_code == 200


@pytest.fixture
async def trying(tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway that tries what is published."""
    async with gateway(tmp_path, tries=True, uploads=LIMITS) as running:
        running.engine = Engine()
        running.services.tryouts._dispatch = running.engine
        yield running


async def test_a_repeated_commit_of_what_waits_to_be_tried_answers_as_the_first(trying: Gateway) -> None:
    trying.states[BASE] = "asleep"
    upload = await begin(trying)
    await send_missing(trying, upload)
    first, again = await commit(trying, upload), await commit(trying, upload)
    assert (first.status_code, first.json()["status"]) == (202, "pending")
    assert (again.status_code, again.json()) == (202, first.json())
    trying.states[BASE] = "ready"
    assert (await trying.client.post("/api/v1/chat/completions", json={**CHAT, "model": "acme/support"})).status_code == 200
    ready = await commit(trying, upload)
    assert (ready.status_code, ready.json()["status"], ready.json()["aliases"]) == (200, "ready", ["production"])


@pytest.mark.parametrize("waited", [False, True], ids=["tried at once", "tried later"])
async def test_a_repeated_commit_of_what_was_rejected_says_why(trying: Gateway, waited: bool) -> None:
    trying.engine.adapted = BASE_ROWS
    upload = await begin(trying)
    await send_missing(trying, upload)
    if waited:
        trying.states[BASE] = "asleep"
        assert (await commit(trying, upload)).status_code == 202
        trying.states[BASE] = "ready"
        await trying.client.post("/api/v1/chat/completions", json={**CHAT, "model": "acme/support"})
    for _ in range(2):
        response = await commit(trying, upload)
        assert response.status_code == 400 and "exactly like its base" in response.json()["error"]["message"]


async def test_a_part_of_another_size_is_refused(uploads: Gateway) -> None:
    upload = await begin(uploads)
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(1000):
            taken += 1000
            yield bytes(1000)

    url = f"{URL}/{upload['id']}/files/adapter_model.safetensors/parts/0"
    assert (await uploads.client.put(url, content=bytes(PART_BYTES + 1))).status_code == 413
    assert (await uploads.client.put(url, content=endless())).status_code == 413
    assert taken < 10_000, "it was read on"
    assert (await uploads.client.put(url, content=b"short")).status_code == 400
    assert (await uploads.client.get(f"{URL}/{upload['id']}")).json() == upload


async def test_a_part_that_is_cut_is_not_kept_and_leaves_its_place(uploads: Gateway) -> None:
    upload = await begin(uploads)
    begun = asyncio.Event()

    async def half() -> AsyncIterator[bytes]:
        yield b"x" * 10
        begun.set()
        await asyncio.sleep(3600)

    sending = [
        asyncio.create_task(uploads.client.put(f"{URL}/{upload['id']}/files/adapter_model.safetensors/parts/{part}", content=half()))
        for part in (0, 1)
    ]
    async with asyncio.timeout(20):
        await begun.wait()
        while not uploads.services.resumable.parts_at_once.locked():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    refused = await send(uploads, upload, "adapter_model.safetensors", 2)
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0
    for task in sending:
        task.cancel()
    await asyncio.gather(*sending, return_exceptions=True)
    assert (await send(uploads, upload, "adapter_model.safetensors", 2)).status_code == 204
    assert (await uploads.client.get(f"{URL}/{upload['id']}")).json()["files"][1]["missing"] == [0, 1]


@pytest.mark.parametrize("which", ["stalls", "trickles"])
async def test_a_client_that_is_too_slow_does_not_keep_its_place(uploads: Gateway, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    monkeypatch.setattr(*((body, "IDLE_SECONDS", 0.1) if which == "stalls" else (upload_parts, "PART_SECONDS", 0.3)))
    upload = await begin(uploads)

    async def slow() -> AsyncIterator[bytes]:
        for _ in range(PART_BYTES):
            yield b"x"
            await asyncio.sleep(3600 if which == "stalls" else 0.05)

    async with asyncio.timeout(20):
        response = await uploads.client.put(f"{URL}/{upload['id']}/files/adapter_model.safetensors/parts/0", content=slow())
    assert response.status_code == 408 and "did not come" in response.json()["error"]["message"]
    assert not uploads.services.resumable.parts_at_once.locked()


async def test_uploads_and_commits_share_the_bound_on_disk(uploads: Gateway, inspector: Inspector) -> None:
    upload = await begin(uploads)
    await send_missing(uploads, upload)
    inspector.gate.clear()
    committing = asyncio.create_task(commit(uploads, upload))
    await asyncio.to_thread(inspector.entered.wait, 20)
    whole = await uploads.client.post(VERSIONS, files=[("files", pair) for pair in FILES.items()])
    assert whole.status_code == 429
    inspector.gate.set()
    assert (await committing).status_code == 201


@pytest.mark.parametrize(
    ("announced", "status", "said"),
    [
        ({}, 400, "files"),
        ({"files": []}, 400, "files"),
        ({"files": [{"name": "adapter_config.json", "size_bytes": -1, "sha256": "0" * 64}]}, 400, "files.0.size_bytes"),
        ({"files": [{"name": "adapter_config.json", "size_bytes": 1, "sha256": "XY"}]}, 400, "files.0.sha256"),
        ({"files": [{"name": "../x", "size_bytes": 1, "sha256": "0" * 64}]}, 400, "not allowed"),
        ({"files": [{"name": "manifest.json", "size_bytes": 1, "sha256": "0" * 64}]}, 400, "kept for the store"),
        ({"files": [{"name": "a.md", "size_bytes": 1, "sha256": "0" * 64}]}, 400, "adapter_config.json is missing"),
        ({"files": [{"name": "adapter_config.json", "size_bytes": 50_001, "sha256": "0" * 64}]}, 413, "50000 are taken"),
        ({"files": [{"name": f"{n}.md", "size_bytes": 1, "sha256": "0" * 64} for n in range(6)]}, 413, "at most 5"),
    ],
)
async def test_what_no_adapter_can_be_is_refused_at_once(uploads: Gateway, announced: dict[str, Any], status: int, said: str) -> None:
    response = await uploads.client.post(URL, json=announced)
    assert (response.status_code, said in response.json()["error"]["message"]) == (status, True), response.text


async def test_more_than_a_key_may_have_open_is_refused_until_one_is_cancelled(uploads: Gateway) -> None:
    first = await begin(uploads)
    await begin(uploads, {**FILES, "README.md": b"1"})
    refused = await uploads.client.post(URL, json=announcement({**FILES, "README.md": b"2"}))
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0
    assert (await uploads.client.delete(f"{URL}/{first['id']}")).json()["deleted"] is True
    assert (await uploads.client.get(f"{URL}/{first['id']}")).status_code == 404
    assert (await commit(uploads, first)).status_code == 404
    await begin(uploads, {**FILES, "README.md": b"2"})


async def test_what_another_key_left_behind_is_swept_when_it_has_expired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumable, "SWEEP_EVERY_SECONDS", 0.0)
    async with gateway(tmp_path, uploads={**LIMITS, "session_seconds": 60.0}) as running:
        left = await begin(running)
        await send(running, left, "adapter_config.json", 0)
        other = KeyRing(open_store(f"file://{tmp_path / 'store'}")).create("other", tenant="acme")[0]
        monkeypatch.setattr(upload_sessions, "time", SimpleNamespace(time=lambda: time.time() + 62))
        response = await running.client.post(URL, json=announcement(), headers={"authorization": f"Bearer {other}"})
        assert response.status_code == 201
        files = [str(path) for path in (tmp_path / "store" / "uploads").rglob("*") if path.is_file()]
        assert len(files) == 1 and response.json()["id"] in files[0]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"{'0' * 32}/files/adapter_config.json/parts/0", 404),
        ("nonsense/files/adapter_config.json/parts/0", 400),
        ("{id}/files/other.json/parts/0", 400),
        ("{id}/files/adapter_config.json/parts/1", 400),
        ("{id}/files/adapter_config.json/parts/-1", 400),
        ("{id}/files/adapter_config.json/parts/x", 400),
    ],
)
async def test_a_part_of_nothing_is_refused(uploads: Gateway, path: str, status: int) -> None:
    upload = await begin(uploads)
    response = await uploads.client.put(f"{URL}/{path.format(id=upload['id'])}", content=b"x")
    assert response.status_code == status and response.json()["error"]["message"], response.text


async def test_without_a_key_nothing_is_begun(uploads: Gateway) -> None:
    response = await uploads.client.post(URL, json=announcement(), headers={"authorization": "Bearer wrong"})
    assert response.status_code == 401
