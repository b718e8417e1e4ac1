"""The routes of aliases: moved, rolled back, deleted, told."""

from __future__ import annotations

from typing import Any

import httpx

from tests.deployments.gateway import Gateway

URL = "/api/v1/adapters/acme/support"


async def publish(api: Gateway, content: str, alias: str = "production") -> str:
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": content.encode()}
    parts = [("files", (name, data)) for name, data in files.items()]
    response = await api.client.post(f"{URL}/versions", files=parts, params={"alias": alias})
    assert response.status_code == 201, response.text
    version: str = response.json()["version"]
    return version


async def aliases(api: Gateway) -> tuple[dict[str, str], str]:
    """The aliases, and the etag of them."""
    response = await api.client.get(URL)
    assert response.headers["etag"] == f'"{response.json()["etag"]}"'
    return response.json()["aliases"], response.headers["etag"]


def said(response: httpx.Response) -> dict[str, Any]:
    return response.json()["error"]


async def test_an_alias_is_moved_rolled_back_and_deleted(api: Gateway) -> None:
    one, two = await publish(api, "one"), await publish(api, "two")
    moved = await api.client.put(f"{URL}/aliases/staging", json={"version": one[:8]})
    assert (moved.status_code, moved.json()["version"]) == (200, one)
    assert moved.headers["etag"] == (await aliases(api))[1]
    back = await api.client.post(f"{URL}/aliases/production/rollback")
    assert (back.status_code, back.json()) == (200, {"id": "acme/support:production", "object": "adapter.alias", "version": one})
    gone = await api.client.delete(f"{URL}/aliases/staging")
    assert (gone.status_code, gone.json()["deleted"]) == (200, True)
    assert (await aliases(api))[0] == {"production": one} != {"production": two}


async def test_each_change_honours_if_match(api: Gateway) -> None:
    one, _ = await publish(api, "one"), await publish(api, "two")
    _, old = await aliases(api)
    await api.client.put(f"{URL}/aliases/staging", json={"version": one})
    before, new = await aliases(api)
    for etag, status in ((old, 409), (new, 200)):
        response = await api.client.post(f"{URL}/aliases/production/rollback", headers={"if-match": etag})
        assert response.status_code == status
    for etag, status in ((new, 409), (response.headers["etag"], 200)):
        response = await api.client.delete(f"{URL}/aliases/staging", headers={"if-match": etag})
        assert response.status_code == status
    for etag, status in ((new, 409), (response.headers["etag"], 200)):
        response = await api.client.put(f"{URL}/aliases/beta", json={"version": one}, headers={"if-match": etag})
        assert response.status_code == status
    assert before["production"] != (await aliases(api))[0]["production"]


async def test_a_change_is_refused_with_its_reason(api: Gateway) -> None:
    one = await publish(api, "one")
    nothing = await api.client.post(f"{URL}/aliases/production/rollback")
    assert (nothing.status_code, "no version before" in said(nothing)["message"]) == (409, True)
    for call in (api.client.post(f"{URL}/aliases/beta/rollback"), api.client.delete(f"{URL}/aliases/beta")):
        assert said(response := await call)["code"] == "model_not_found", response.text
    bad = await api.client.put(f"{URL}/aliases/bad alias", json={"version": one})
    assert (bad.status_code, said(bad)["param"]) == (400, "alias")
    assert (await api.client.put(f"{URL}/aliases/beta", json={"version": one, "more": 1})).status_code == 400


async def test_history_tells_every_move_newest_first(api: Gateway) -> None:
    one, two = await publish(api, "one"), await publish(api, "two")
    await api.client.post(f"{URL}/aliases/production/rollback")
    answer = (await api.client.get(f"{URL}/history")).json()
    assert [(move["why"], move["from"], move["to"]) for move in answer["data"]] == [
        ("rollback", two, one),
        ("publish", one, two),
        ("publish", None, one),
    ]
    assert answer["data"][0]["by"]["name"] == "test"
    assert not answer["has_more"]
    short = (await api.client.get(f"{URL}/history", params={"limit": 1})).json()
    assert (len(short["data"]), short["has_more"]) == (1, True)
    assert (await api.client.get(f"{URL}/history", params={"alias": "beta"})).json()["data"] == []
    assert (await api.client.get("/api/v1/adapters/acme/none/history")).status_code == 404
