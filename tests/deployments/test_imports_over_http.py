"""POST …/versions with a source: the adapter is fetched, and published as an upload is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters_store.errors import InvalidAdapter
from adapters_store.validate import Fit
from tests.deployments.gateway import BASE, gateway
from tests.hub import hub
from tests.s3 import free_port

URL = "/api/v1/adapters/acme/support/versions"
FILES = {"adapter_config.json": b'{"r": 8}', "adapter_model.safetensors": b"weights"}


@pytest.fixture(scope="module")
def hub_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("hub")
    (folder / "acme" / "support").mkdir(parents=True)
    for name, data in FILES.items():
        (folder / "acme" / "support" / name).write_bytes(data)
    with hub(folder) as url:
        yield url


async def test_an_import_is_judged_and_published_as_an_upload_is(tmp_path: Path, hub_url: str) -> None:
    seen: list[dict[str, bytes]] = []

    def inspect(folder: Path) -> Fit:
        seen.append({path.name: path.read_bytes() for path in folder.iterdir()})
        if len(seen) > 2:
            raise InvalidAdapter(["Rank 64 is above 16."])
        return Fit(BASE, 8)

    async with gateway(tmp_path, inspect=inspect, imports={"hub_url": hub_url}) as running:
        first = await running.client.post(URL, json={"source": "hf://acme/support"})
        again = await running.client.post(URL, files=[("files", pair) for pair in FILES.items()])
        refused = await running.client.post(URL, json={"source": "hf://acme/support@v1"})
        assert (first.status_code, again.status_code) == (201, 200), first.text
        assert first.json()["id"] == again.json()["id"]
        assert seen == [FILES] * 3
        assert (refused.status_code, refused.json()["error"]["message"]) == (400, "Rank 64 is above 16.")
        assert running.staged == [], "an import left files behind"
        assert not running.services.uploads_at_once.locked()


@pytest.mark.parametrize(
    ("body", "status", "code", "said"),
    [
        ({"source": "hf://acme/none"}, 404, "model_not_found", "hf://acme/none"),
        ({"source": "s3://elsewhere/x"}, 403, "permission_denied", "imports.buckets"),
        ({"source": "http://169.254.169.254/latest"}, 400, "invalid_request_error", "hf://owner/name"),
        ({"source": "file:///etc/passwd"}, 400, "invalid_request_error", "hf://owner/name"),
        ({"source": 1}, 400, "invalid_request_error", "name one source"),
        ({"from": "hf://acme/support"}, 400, "invalid_request_error", "name one source"),
        ({"source": "hf://" + "x" * 20_000}, 413, "request_too_large", "16384"),
    ],
)
async def test_what_is_not_imported_says_why(tmp_path: Path, hub_url: str, body: dict, status: int, code: str, said: str) -> None:  # type: ignore[type-arg]
    async with gateway(tmp_path, imports={"hub_url": hub_url}) as running:
        response = await running.client.post(URL, json=body)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code), response.text
        assert said in response.json()["error"]["message"]
        assert running.staged == []


async def test_a_hub_that_is_away_is_503_with_the_source_and_a_remedy(tmp_path: Path) -> None:
    async with gateway(tmp_path, imports={"hub_url": f"http://127.0.0.1:{free_port()}"}) as running:
        response = await running.client.post(URL, json={"source": "hf://acme/support"})
        assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")
        assert int(response.headers["retry-after"]) > 0
        message = response.json()["error"]["message"]
        assert "hf://acme/support" in message and "imports.hub_url" in message
