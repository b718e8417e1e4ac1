"""Uploads arrive in bounded memory, are stopped where they go too far, and leave nothing behind, whatever happens."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from adapters_store.errors import InvalidAdapter
from adapters_store.validate import Fit
from deployments.api import body
from tests.deployments.gateway import BASE, Gateway, gateway
from tests.uploading import in_folder, parts, tar_gz, zipped

URL = "/api/v1/adapters/acme/support/versions"
CHATS = "/api/v1/chat/completions"
CONFIG, WEIGHTS = b'{"peft_type": "LORA"}', bytes(range(256)) * 4000  # a megabyte
FILES = {"adapter_config.json": CONFIG, "adapter_model.safetensors": WEIGHTS}
LIMIT = 2 << 20


class Inspector:
    """Stands for the validation: keeps what arrived, refuses it if told to, waits at a gate."""

    def __init__(self) -> None:
        self.seen: dict[str, bytes] = {}
        self.refuses = False
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, folder: Path) -> Fit:
        self.seen = {path.name: path.read_bytes() for path in folder.iterdir()}
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
    async with gateway(tmp_path, inspect=inspector, uploads={"max_bytes": LIMIT, "max_files": 5, "at_once": 2}) as running:
        yield running
        inspector.gate.set()
        assert running.staged == [], "an upload left files behind"


async def in_pieces(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def test_multipart_files_arrive_as_they_were_sent(uploads: Gateway, inspector: Inspector) -> None:
    response = await uploads.client.post(URL, files=parts(FILES))
    assert response.status_code == 201, response.text
    assert inspector.seen == FILES
    said = response.json()
    assert (said["owner"], said["name"], said["base"], said["rank"]) == ("acme", "support", BASE, 8)
    assert said["id"] == f"acme/support@{said['version']}" and said["size_bytes"] == len(CONFIG) + len(WEIGHTS)
    assert said["aliases"] == ["production"]
    assert response.headers["location"] == "/api/v1/adapters/acme/support"


@pytest.mark.parametrize(
    ("pack", "kind"), [(tar_gz, "application/gzip"), (zipped, "application/zip"), (tar_gz, "application/octet-stream")]
)
@pytest.mark.parametrize("folder", ["", "my-adapter"])
async def test_an_archive_arrives_unpacked(uploads: Gateway, inspector: Inspector, pack, kind: str, folder: str) -> None:  # type: ignore[no-untyped-def]
    packed = pack(in_folder(folder, FILES) if folder else FILES)
    response = await uploads.client.post(URL, content=in_pieces(packed), headers={"content-type": kind})
    assert response.status_code == 201, response.text
    assert inspector.seen == FILES


async def test_an_archive_as_the_only_part_is_unpacked(uploads: Gateway, inspector: Inspector) -> None:
    response = await uploads.client.post(URL, files={"files": ("adapter.tar.gz", tar_gz(FILES))})
    assert response.status_code == 201, response.text
    assert inspector.seen == FILES


async def test_the_same_content_again_is_the_same_version(uploads: Gateway) -> None:
    first = await uploads.client.post(URL, files=parts(FILES))
    again = await uploads.client.post(URL, content=tar_gz(FILES), headers={"content-type": "application/x-gzip"})
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("kind", ["multipart", "archive"])
async def test_an_upload_that_is_too_large_is_stopped_early(uploads: Gateway, inspector: Inspector, kind: str, declared: bool) -> None:
    taken = 0

    async def endless(head: bytes) -> AsyncIterator[bytes]:
        nonlocal taken
        yield head
        for _ in range(1000):
            taken += 1 << 16
            yield b"\0" * (1 << 16)

    head, content_type = b"", "application/zip"
    if kind == "multipart":
        head = b'--b\r\ncontent-disposition: form-data; name="files"; filename="adapter_model.safetensors"\r\n\r\n'
        content_type = "multipart/form-data; boundary=b"
    headers = {"content-type": content_type, **({"content-length": str(64 << 20)} if declared else {})}
    response = await uploads.client.post(URL, content=endless(head), headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
    assert str(LIMIT) in response.json()["error"]["message"] or str(LIMIT + (1 << 20)) in response.json()["error"]["message"]
    assert taken <= (1 << 16 if declared else LIMIT + (1 << 18)), "it was read on"
    assert inspector.seen == {}


async def test_an_archive_that_grows_too_large_is_stopped(uploads: Gateway) -> None:
    bomb = tar_gz({"adapter_config.json": CONFIG, "adapter_model.safetensors": bytes(40 << 20)})
    assert len(bomb) < LIMIT
    response = await uploads.client.post(URL, content=bomb, headers={"content-type": "application/gzip"})
    assert response.status_code == 413, response.text


async def test_too_many_files_are_refused(uploads: Gateway) -> None:
    response = await uploads.client.post(URL, files=parts({f"file{i}.json": b"{}" for i in range(6)}))
    assert response.status_code == 413 and "5 files" in response.json()["error"]["message"]


def raw_part(*parts: bytes) -> bytes:
    return b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + b"--b--\r\n"


NAMED = b'content-disposition: form-data; name="files"; filename="%s"\r\n\r\nx'


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        (b"{}", "application/json", "name one source"),
        (b"", "", "is not an upload"),
        (b"x", "text/plain", "is not an upload"),
        (b"x", "multipart/form-data", "boundary"),
        (b"nonsense", "multipart/form-data; boundary=b", "damaged"),
        (raw_part(NAMED % b"a.json")[:-30], "multipart/form-data; boundary=b", "cut"),
        (b"--b--\r\n", "multipart/form-data; boundary=b", ""),
        (raw_part(b'content-disposition: form-data; name="x"\r\n\r\n1'), "multipart/form-data; boundary=b", "no file name"),
        (raw_part(NAMED % b"../evil.json"), "multipart/form-data; boundary=b", ""),
        (raw_part(NAMED % b"/etc/passwd"), "multipart/form-data; boundary=b", ""),
        (raw_part(NAMED % b"a.json", NAMED % b"a.json"), "multipart/form-data; boundary=b", "two files"),
        (raw_part(b"x-long: " + b"y" * 20_000 + b"\r\n" + NAMED % b"a.json"), "multipart/form-data; boundary=b", ""),
        (b"not an archive", "application/zip", ""),
        (tar_gz(FILES)[:500], "application/gzip", ""),
        (zipped({"../escape.json": b"{}"}), "application/zip", ""),
        (tar_gz({"a/../../escape.json": b"{}"}), "application/gzip", ""),
        (b"", "application/gzip", ""),
    ],
)
async def test_what_is_no_upload_is_refused(uploads: Gateway, inspector: Inspector, content: bytes, kind: str, said: str) -> None:
    response = await uploads.client.post(URL, content=content, headers={"content-type": kind})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert said in error["message"] and str(uploads.uploads) not in error["message"]
    assert inspector.seen == {}


async def test_an_unfit_adapter_is_refused_and_not_published(uploads: Gateway, inspector: Inspector) -> None:
    inspector.refuses = True
    response = await uploads.client.post(URL, files=parts(FILES))
    assert (response.status_code, response.json()["error"]["message"]) == (400, "Rank 64 is above 16.")
    detail = (await uploads.client.get("/api/v1/adapters/acme/support")).json()
    assert (detail["versions"], detail["aliases"], detail["pending"], len(detail["rejected"])) == ([], {}, [], 1)


async def test_more_uploads_than_a_gateway_takes_are_refused(uploads: Gateway, inspector: Inspector) -> None:
    inspector.gate.clear()
    running = [asyncio.create_task(uploads.client.post(URL.replace("support", f"s{i}"), files=parts(FILES))) for i in range(2)]
    async with asyncio.timeout(20):
        while not uploads.services.uploads_at_once.locked():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    refused = await uploads.client.post(URL, files=parts(FILES))
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0
    inspector.gate.set()
    assert [response.status_code for response in await asyncio.gather(*running)] == [201, 201]
    assert (await uploads.client.post(URL, files=parts(FILES))).status_code == 201


async def test_an_upload_whose_client_leaves_is_cleaned_up(uploads: Gateway) -> None:
    arrived = asyncio.Event()

    async def half() -> AsyncIterator[bytes]:
        yield raw_part(NAMED % b"a.json")[:60]
        arrived.set()
        await asyncio.sleep(3600)

    kind = {"content-type": "multipart/form-data; boundary=b"}
    uploading = asyncio.create_task(uploads.client.post(URL, content=half(), headers=kind))
    await asyncio.wait_for(arrived.wait(), 20)
    uploading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await uploading
    assert not uploads.services.uploads_at_once.locked()


async def told_too_slow(uploads: Gateway, url: str, kind: str, content: AsyncIterator[bytes]) -> str:
    """The message of the 408 that ends a request with this body; its place is free again."""
    async with asyncio.timeout(20):
        response = await uploads.client.post(url, content=content, headers={"content-type": kind})
    assert (response.status_code, response.json()["error"]["code"]) == (408, "request_timeout")
    assert not uploads.services.uploads_at_once.locked()
    return str(response.json()["error"]["message"])


@pytest.mark.parametrize(("url", "kind"), [(URL, "application/zip"), (URL, "multipart/form-data; boundary=b"), (CHATS, "application/json")])
async def test_a_client_that_stalls_does_not_keep_its_place(uploads: Gateway, monkeypatch: pytest.MonkeyPatch, url: str, kind: str) -> None:
    monkeypatch.setattr(body, "IDLE_SECONDS", 0.1)

    async def half() -> AsyncIterator[bytes]:
        yield b"--b\r\ncontent-disposition: form-data"
        await asyncio.sleep(3600)

    assert "did not come" in await told_too_slow(uploads, url, kind, half())


@pytest.mark.parametrize(("url", "kind"), [(URL, "application/zip"), (CHATS, "application/json")])
async def test_a_client_that_trickles_does_not_keep_its_place(
    uploads: Gateway, monkeypatch: pytest.MonkeyPatch, url: str, kind: str
) -> None:
    monkeypatch.setattr(body, "PATIENCE_SECONDS", 0.3)

    async def trickle() -> AsyncIterator[bytes]:
        while True:
            yield b"x"
            await asyncio.sleep(0.05)

    assert "too slowly" in await told_too_slow(uploads, url, kind, trickle())


@pytest.mark.parametrize("name", ["a b", "..", "-x", "x" * 200])
async def test_a_name_that_is_none_is_refused_before_anything_is_read(uploads: Gateway, name: str) -> None:
    def never() -> Iterable[bytes]:
        raise AssertionError("the body was read")
        yield b""

    async def pieces() -> AsyncIterator[bytes]:
        for part in never():
            yield part

    response = await uploads.client.post(
        f"/api/v1/adapters/acme/{name}/versions", content=pieces(), headers={"content-type": "application/zip"}
    )
    assert response.status_code in (400, 404, 405), response.text
