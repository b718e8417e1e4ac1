"""Warm before it moves: what each route has loaded before its alias moves, and that nothing of it stops a move; and warming by hand."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from adapters_store.access import Scope
from adapters_store.errors import NotFound, Unavailable
from adapters_store.keys import KeyRing
from adapters_store.names import ModelRef
from adapters_store.objects import open_store
from adapters_store.validate import Fit
from tests.deployments.gateway import BASE, Gateway, gateway
from tests.deployments.test_aliases import URL, publish, said
from tests.uploading import parts

ALIAS = f"{URL}/aliases/production"


@pytest.fixture
async def versions(api: Gateway) -> tuple[str, str]:
    """`production` serves the first; the second was published beside it. From here on, what an alias serves is noted with each warm."""
    one, two = await publish(api, "one"), await publish(api, "two", alias="beta")
    assert not api.warmer.succeeded, "there was nothing to take the place of"
    return one, two


def serving(api: Gateway) -> str:
    return api.services.registry.read(ModelRef("acme", "support", "production", None)).version


def note_moves(api: Gateway) -> list[str]:
    """What `production` serves at each warm from now on."""
    served: list[str] = []
    api.warmer.on_succeed = lambda: served.append(serving(api))
    return served


async def test_a_version_is_warm_before_an_alias_points_at_it(api: Gateway, versions: tuple[str, str]) -> None:
    one, two = versions
    served = note_moves(api)
    assert (await api.client.put(ALIAS, json={"version": two[:12]})).status_code == 200
    assert api.warmer.succeeded == [(two, (one,))]
    assert (served, serving(api)) == ([one], two)


async def test_a_rollback_is_warm_before(api: Gateway, versions: tuple[str, str]) -> None:
    one, two = versions
    await api.client.put(ALIAS, json={"version": two})
    served = note_moves(api)
    assert (await api.client.post(f"{ALIAS}/rollback")).status_code == 200
    assert api.warmer.succeeded[1:] == [(one, (two,))]
    assert (served, serving(api)) == ([two], one)


@pytest.mark.parametrize("known", [False, True], ids=["new content", "content that is there"])
async def test_an_upload_is_warm_before_its_alias_moves(api: Gateway, versions: tuple[str, str], known: bool) -> None:
    one, two = versions
    served = note_moves(api)
    weights = b"two" if known else b"three"
    files = parts({"adapter_config.json": b"{}", "adapter_model.safetensors": weights})
    response = await api.client.post(f"{URL}/versions", files=files)
    assert response.status_code == (200 if known else 201), response.text
    assert response.json()["aliases"] == ["production"]
    assert api.warmer.succeeded == [(response.json()["version"], (one,))]
    assert (served, serving(api)) == ([one], response.json()["version"])
    assert (serving(api) == two) == known


async def test_a_commit_of_content_that_is_there_is_warm_before(api: Gateway, versions: tuple[str, str]) -> None:
    one, two = versions
    adapter = api.services.registry.read(ModelRef("acme", "support", "beta", None))
    files = [{"name": file.name, "size_bytes": file.size_bytes, "sha256": file.sha256} for file in adapter.files]
    begun = await api.client.post(f"{URL}/uploads", json={"files": files})
    served = note_moves(api)
    assert (await api.client.post(f"{URL}/uploads/{begun.json()['id']}/commit")).status_code == 200
    assert (api.warmer.succeeded, served, serving(api)) == ([(two, (one,))], [one], two)


async def test_a_canary_and_its_promotion_are_warm_before(api: Gateway, versions: tuple[str, str]) -> None:
    one, two = versions
    assert (await api.client.put(f"{ALIAS}/canary", json={"version": two, "weight": 10})).status_code == 200
    assert (await api.client.post(f"{ALIAS}/canary/promote")).status_code == 200
    assert api.warmer.succeeded == [(two, (one,)), (two, (one,))]


async def test_who_was_answered_by_a_canary_finds_the_next_version_warm_too(api: Gateway, versions: tuple[str, str]) -> None:
    one, two = versions
    await api.client.put(f"{ALIAS}/canary", json={"version": two, "weight": 50})
    three = await publish(api, "three")
    assert api.warmer.succeeded[1:] == [(three, (one, two))]


async def test_what_changes_nothing_warms_nothing(api: Gateway, versions: tuple[str, str], caplog: pytest.LogCaptureFixture) -> None:
    one, _ = versions
    assert (await api.client.put(ALIAS, json={"version": one})).status_code == 200
    assert (await api.client.put(f"{URL}/aliases/new", json={"version": one})).status_code == 200
    assert (await api.client.post(f"{ALIAS}/rollback")).status_code == 409
    assert (await api.client.post(f"{ALIAS}/canary/promote")).status_code == 404
    assert (await api.client.put(ALIAS, json={"version": "0" * 64})).status_code == 404
    assert (await api.client.put(ALIAS, json={"version": "no version"})).status_code == 400
    assert not api.warmer.succeeded
    assert "warm_failed" not in [record.message for record in caplog.records], "what a client does wrong is no trouble of ours"


async def test_a_model_that_sleeps_is_moved_at_once(api: Gateway, versions: tuple[str, str]) -> None:
    api.warmer.running = 0
    three = await publish(api, "three")
    assert (await api.client.post(f"{ALIAS}/rollback")).status_code == 200
    assert not api.warmer.succeeded
    assert serving(api) == versions[0] != three


@pytest.mark.parametrize("error", [Unavailable("the replicas are away"), NotFound("no longer served"), RuntimeError("a bug")])
async def test_nothing_of_a_warm_stops_a_move(
    api: Gateway, versions: tuple[str, str], error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """Going back must always work."""
    one, two = versions
    api.warmer.error = error
    three = await publish(api, "three")
    for call in (
        api.client.put(ALIAS, json={"version": two}),
        api.client.post(f"{ALIAS}/rollback"),
        api.client.put(f"{ALIAS}/canary", json={"version": one, "weight": 1}),
        api.client.post(f"{ALIAS}/canary/promote"),
    ):
        assert (await call).status_code == 200
    assert serving(api) == one != three
    assert len(api.warmer.succeeded) == 5
    told = [record for record in caplog.records if record.message == "warm_failed" and record.levelno >= logging.WARNING]
    assert len(told) == (0 if isinstance(error, NotFound) else 5)


async def test_a_version_is_warmed_by_hand(api: Gateway, versions: tuple[str, str]) -> None:
    _, two = versions
    api.warmer.running = 3
    response = await api.client.post(f"{URL}/versions/{two[:8]}/warm")
    assert response.status_code == 200, response.text
    assert response.json() == {
        "id": f"acme/support@{two}",
        "object": "adapter.warm",
        "version": two,
        "base": BASE,
        "replicas": 1,
        "running": 3,
        "found": ["store"],
        "wait_ms": [812.4],
    }
    all_of_them = await api.client.post(f"{URL}/versions/{two}/warm", params={"replicas": 9})
    assert (all_of_them.json()["replicas"], all_of_them.json()["found"]) == (3, ["store"] * 3)
    assert [(adapter.version, replicas) for adapter, replicas in api.warmer.loaded] == [(two, 1), (two, 9)]


@pytest.mark.parametrize("replicas", ["0", "-1", "many"])
async def test_a_number_of_replicas_that_is_none_is_refused(api: Gateway, versions: tuple[str, str], replicas: str) -> None:
    response = await api.client.post(f"{URL}/versions/{versions[0]}/warm", params={"replicas": replicas})
    assert (response.status_code, said(response)["param"]) == (400, "replicas")


async def test_a_model_that_sleeps_is_not_woken_to_be_warmed(api: Gateway, versions: tuple[str, str]) -> None:
    api.warmer.running = 0
    response = await api.client.post(f"{URL}/versions/{versions[0]}/warm")
    assert (response.status_code, said(response)["code"]) == (503, "unavailable")
    assert response.headers["retry-after"]


async def test_what_is_not_there_cannot_be_warmed(api: Gateway, versions: tuple[str, str]) -> None:
    _, two = versions
    await api.client.delete(f"{URL}/aliases/beta")
    await api.client.delete(f"{URL}/versions/{two}")
    for version, status in ((two, 404), ("0" * 64, 404), ("no-version", 400)):
        assert (await api.client.post(f"{URL}/versions/{version}/warm")).status_code == status
    assert not api.warmer.loaded


async def test_an_adapter_of_a_base_that_is_not_served_cannot_be_warmed(tmp_path: Path) -> None:
    async with gateway(tmp_path, inspect=lambda _: Fit("another", 8)) as api:
        response = await api.client.post(f"{URL}/versions/{await publish(api, 'one')}/warm")
        assert (response.status_code, "another" in said(response)["message"]) == (404, True)


async def test_only_who_may_change_an_adapter_warms_it(tmp_path: Path) -> None:
    """It takes the place of others in the engine, and asks nothing."""
    async with gateway(tmp_path) as api:
        version = await publish(api, "one")
        secret, _ = KeyRing(open_store(f"file://{tmp_path / 'store'}")).create("other", tenant="beta", scopes=[Scope.INFER, Scope.UPLOAD])
        headers = {"authorization": f"Bearer {secret}"}
        response = await api.client.post(f"{URL}/versions/{version}/warm", headers=headers)
        assert response.status_code == 403
        assert not api.warmer.loaded
