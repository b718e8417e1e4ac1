"""What is uploaded is tried on a replica before anybody is answered by it, over HTTP: ready, pending, or rejected with every reason."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from adapters_store.access import Scope
from adapters_store.adapter import Adapter
from adapters_store.admissions import Admissions
from adapters_store.errors import InternalError, InvalidAdapter
from adapters_store.history import Actor
from adapters_store.keys import KeyRing
from adapters_store.names import ModelRef
from adapters_store.objects import open_store
from adapters_store.own_settings import OwnSettings
from adapters_store.validate import Fit
from deployments.api import admission
from tests.deployments.gateway import BASE, CHAT, Gateway, gateway
from tests.deployments.tryouts import BASE_ROWS, Engine
from tests.uploading import parts

URL = "/api/v1/adapters/acme/support"
CHATS = "/api/v1/chat/completions"
GOLDEN = b'golden:\n  - {prompt: "Who are you?", contains: "matey"}\n  - {prompt: "What?", contains: "treasure"}\n'


def files(weights: bytes = b"one", **more: bytes) -> dict[str, bytes]:
    named = {name.replace("__", "."): data for name, data in more.items()}
    return {"adapter_config.json": b"{}", "adapter_model.safetensors": weights, **named}


@pytest.fixture
async def admitting(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with gateway(tmp_path, tries=True) as running:
        engine = Engine()
        running.services.tryouts._dispatch = engine  # type: ignore[assignment]
        running.engine = engine
        yield running


async def push(running: Gateway, upload: dict[str, bytes], query: str = "") -> tuple[int, dict[str, object]]:
    response = await running.client.post(f"{URL}/versions{query}", files=parts(upload))
    return response.status_code, response.json()


async def ask(running: Gateway, model: str = "acme/support") -> int:
    return (await running.client.post(CHATS, json={**CHAT, "model": model})).status_code


def adapter_of(running: Gateway, body: dict[str, object]) -> Adapter:
    """The version that an upload answered with."""
    found = running.services.registry.admissions.of("acme", "support", str(body["version"])).adapter
    assert found is not None
    return found


async def until_status(running: Gateway, url: str, status: str) -> None:
    async with asyncio.timeout(20):
        while (await running.client.get(url)).json()["status"] != status:  # noqa: ASYNC110 - over HTTP
            await asyncio.sleep(0.02)


async def test_a_good_version_is_ready_when_its_upload_returns(admitting: Gateway) -> None:
    status, body = await push(admitting, files())
    assert (status, body["status"], body["aliases"]) == (201, "ready", ["production"])
    assert await ask(admitting) == 200
    version = (await admitting.client.get(f"{URL}/versions/{body['version']}")).json()
    assert version["status"] == "ready" and "reasons" not in version


async def test_a_version_without_effect_is_rejected_and_what_was_served_stays(admitting: Gateway) -> None:
    _, first = await push(admitting, files())
    admitting.engine.adapted = BASE_ROWS
    status, body = await push(admitting, files(b"two"))
    assert status == 400 and "exactly like its base" in body["error"]["message"]
    detail = (await admitting.client.get(URL)).json()
    assert detail["aliases"] == {"production": first["version"]} and [row["version"] for row in detail["versions"]] == [first["version"]]
    (rejected,) = detail["rejected"]
    told = (await admitting.client.get(f"{URL}/versions/{rejected}")).json()
    assert told["status"] == "rejected" and "exactly like its base" in told["reasons"][0]
    assert await ask(admitting, f"acme/support@{rejected}") == 404
    moved = await admitting.client.put(f"{URL}/aliases/beta", json={"version": rejected})
    assert moved.status_code == 404 and "rejected" in moved.json()["error"]["message"]
    undeleted = await admitting.client.post(f"{URL}/versions/{rejected}/undelete")
    assert undeleted.status_code == 409


async def test_every_golden_prompt_that_fails_is_told(admitting: Gateway) -> None:
    status, body = await push(admitting, files(lorikeet__yaml=GOLDEN))
    assert status == 400
    assert "golden prompt 1" in body["error"]["message"] and "golden prompt 2" in body["error"]["message"]
    assert await ask(admitting) == 404


async def test_while_no_replica_is_awake_a_version_is_pending_and_not_served(admitting: Gateway) -> None:
    _, first = await push(admitting, files())
    admitting.states[BASE] = "asleep"
    status, body = await push(admitting, files(b"two"))
    assert (status, body["status"], body["aliases"]) == (202, "pending", [])
    told = (await admitting.client.get(f"{URL}/versions/{body['version']}")).json()
    assert told["status"] == "pending" and told["since"] > 0
    found = await admitting.services.resolver.resolve(ModelRef.parse("acme/support"))
    assert found.adapter.version == first["version"]
    moved = await admitting.client.put(f"{URL}/aliases/beta", json={"version": body["version"]})
    assert moved.status_code == 409 and "waits to be tried" in moved.json()["error"]["message"]


async def test_who_asks_for_a_pending_name_has_it_tried(admitting: Gateway) -> None:
    admitting.states[BASE] = "asleep"
    await push(admitting, files())
    assert (await admitting.client.get("/api/v1/adapters")).json()["data"] == []
    statuses = await asyncio.gather(*(ask(admitting) for _ in range(8)))
    assert statuses == [200] * 8
    assert len(admitting.engine.asked) == len(admission.tryout.PROMPTS), "eight requests had it tried once"
    assert [row["id"] for row in (await admitting.client.get("/api/v1/adapters")).json()["data"]] == ["acme/support"]


async def test_what_waits_is_tried_as_soon_as_a_replica_is_awake(admitting: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "LOOK_SECONDS", 0.02)
    admitting.states[BASE] = "asleep"
    _, body = await push(admitting, files())
    task = asyncio.create_task(admitting.services.tryouts.keep_trying())
    try:
        await asyncio.sleep(0.1)
        assert admitting.engine.asked == [], "a sleeping model is not woken for it"
        admitting.states[BASE] = "ready"
        await until_status(admitting, f"{URL}/versions/{body['version']}", "ready")
    finally:
        task.cancel()


@pytest.mark.parametrize("error", [InternalError("its settings are damaged"), RuntimeError("a bug")])
async def test_a_version_that_cannot_be_tried_holds_up_no_other(
    admitting: Gateway, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(admission, "LOOK_SECONDS", 0.02)
    admitting.states[BASE] = "asleep"
    admissions = admitting.services.registry.admissions
    uploads = [(await push(admitting, files(weights), f"?alias={weights.decode()}"))[1]["version"] for weights in (b"one", b"two")]
    bad, good = sorted(map(str, uploads))  # as their markers are looked at
    own, tries = admissions.own, 0

    def failing(adapter: Adapter) -> OwnSettings:
        nonlocal tries
        if adapter.version != bad:
            return own(adapter)
        tries += 1
        raise error

    monkeypatch.setattr(admissions, "own", failing)
    admitting.states[BASE] = "ready"
    task = asyncio.create_task(admitting.services.tryouts.keep_trying())
    try:
        await until_status(admitting, f"{URL}/versions/{good}", "ready")
        await asyncio.sleep(1.0)
    finally:
        task.cancel()
    assert 2 <= tries <= 7, "it is tried again, and ever more rarely: not at each of some fifty looks"
    assert (await admitting.client.get(f"{URL}/versions/{bad}")).json()["status"] == "pending"


async def test_a_version_whose_trial_takes_too_long_is_not_tried_again_at_once(admitting: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    admitting.states[BASE] = "asleep"
    waiting = adapter_of(admitting, (await push(admitting, files()))[1])
    tryouts, gate = admitting.services.tryouts, threading.Event()
    monkeypatch.setattr(admitting.services.registry.admissions, "own", lambda _: gate.wait(20))
    monkeypatch.setattr(tryouts, "_timeout_seconds", 0.02)
    admitting.states[BASE] = "ready"
    assert tryouts._is_due(waiting)
    await tryouts._try_waiting(waiting)
    gate.set()
    assert not tryouts._is_due(waiting)
    monkeypatch.undo()
    assert await ask(admitting) == 200, "who asks for it has it tried all the same"


async def test_the_time_that_a_model_takes_to_wake_is_not_the_trials(admitting: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    admitting.states[BASE] = "asleep"
    await push(admitting, files())
    monkeypatch.setattr(admitting.services.tryouts, "_timeout_seconds", 0.3)
    monkeypatch.setattr(admission.tryout, "wake", lambda _: asyncio.sleep(0.6))
    assert await ask(admitting) == 200


async def test_no_more_trials_wait_than_may(admitting: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "TRIALS_MOST", 1)
    admitting.states[BASE] = "asleep"
    for name in ("one", "two"):
        await push(admitting, files(name.encode()), f"?alias={name}")
    woken = asyncio.Event()
    monkeypatch.setattr(admission.tryout, "wake", lambda _: woken.wait())
    first = asyncio.create_task(ask(admitting, "acme/support:one"))
    async with asyncio.timeout(20):
        while not admitting.services.tryouts._running:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
    assert await ask(admitting, "acme/support:two") == 429
    admitting.states[BASE] = "ready"
    status, _ = await push(admitting, files(b"three"))
    assert status == 202, "an upload that is not tried now is not lost: it waits"
    woken.set()
    assert await first == 200
    assert await ask(admitting, "acme/support:two") == 200


async def test_who_asks_for_no_answer_has_nothing_tried(admitting: Gateway, tmp_path: Path) -> None:
    admitting.states[BASE] = "asleep"
    await push(admitting, files())
    looked = await admitting.client.get("/api/v1/models/acme/support")
    assert looked.status_code == 503 and "waits to be tried" in looked.json()["error"]["message"]
    uploader, _ = KeyRing(open_store(f"file://{tmp_path / 'store'}")).create("ci", tenant="acme", scopes=[Scope.UPLOAD])
    asked = await admitting.client.post(CHATS, json={**CHAT, "model": "acme/support"}, headers={"authorization": f"Bearer {uploader}"})
    assert asked.status_code == 503
    assert admitting.engine.asked == [] and admitting.engine.base_asked == 0


async def test_a_later_publish_is_not_undone_by_an_earlier_one_that_waited(admitting: Gateway) -> None:
    admitting.states[BASE] = "asleep"
    _, first = await push(admitting, files(b"one"))
    _, second = await push(admitting, files(b"two"))
    assert await ask(admitting) == 200
    assert await ask(admitting, f"acme/support@{first['version']}") == 200
    detail = (await admitting.client.get(URL)).json()
    assert detail["aliases"] == {"production": second["version"]} and detail["pending"] == []


async def test_a_version_is_warm_where_it_will_be_asked_for_before_it_is_served(admitting: Gateway) -> None:
    _, first = await push(admitting, files(b"one"))
    assert admitting.warmer.succeeded == [], "there was nothing to take the place of"
    served: list[str] = []
    ref = ModelRef.parse("acme/support")
    admitting.warmer.on_succeed = lambda: served.append(admitting.services.registry.read(ref).version)
    _, second = await push(admitting, files(b"two"))
    assert admitting.warmer.succeeded == [(second["version"], (first["version"],))]
    assert served == [first["version"]], "once, and before the alias moved"
    admitting.engine.adapted = BASE_ROWS
    await push(admitting, files(b"three"))
    assert len(admitting.warmer.succeeded) == 1, "what is rejected is loaded nowhere else"


def meanwhile(running: Gateway, happens: Callable[[Admissions, Adapter], object]) -> None:
    """Have another gateway be quicker: `happens` when the next trial here has begun."""
    admissions = running.services.registry.admissions
    own = admissions.own

    def late(adapter: Adapter) -> OwnSettings:
        admissions.own = own  # type: ignore[method-assign]
        happens(admissions, adapter)
        return own(adapter)

    admissions.own = late  # type: ignore[method-assign]


async def test_what_another_gateway_rejected_is_told_as_rejected(admitting: Gateway) -> None:
    meanwhile(admitting, lambda admissions, adapter: admissions.reject(adapter, ["it is worse elsewhere."]))
    status, body = await push(admitting, files())
    assert status == 400 and "worse elsewhere" in body["error"]["message"]
    assert await ask(admitting) == 404


async def test_what_another_gateway_admitted_is_told_as_ready(admitting: Gateway) -> None:
    admitting.engine.error = InternalError("a bad day here")
    meanwhile(admitting, lambda admissions, adapter: admissions.admit(adapter))
    status, body = await push(admitting, files())
    assert (status, body["status"], body["aliases"]) == (201, "ready", ["production"])


async def test_an_alias_that_has_moved_on_is_not_claimed(admitting: Gateway) -> None:
    _, first = await push(admitting, files())

    def admit_and_move(admissions: Admissions, adapter: Adapter) -> None:
        admissions.admit(adapter)
        admitting.services.registry.aliases.move("acme", "support", "production", str(first["version"]), by=Actor("k"))

    meanwhile(admitting, admit_and_move)
    status, body = await push(admitting, files(b"two"))
    assert (status, body["status"], body["aliases"]) == (201, "ready", [])


@pytest.mark.parametrize("gone", [False, True], ids=["withdrawn", "admitted, then retired"])
async def test_a_version_that_is_taken_away_while_it_is_tried_is_not_told_as_ready(admitting: Gateway, gone: bool) -> None:
    def take_away(admissions: Admissions, adapter: Adapter) -> None:
        if gone:
            admissions.admit(adapter)
        admitting.services.registry.retirement.retire("acme", "support", by=Actor("k"))

    meanwhile(admitting, take_away)
    status, body = await push(admitting, files())
    assert status == 400 and ("retired" if not gone else "taken away") in body["error"]["message"]


async def labels(running: Gateway) -> tuple[object, object]:
    shown = (await running.client.get(URL)).json()
    return shown["tags"], shown["visibility"]


async def test_labels_of_a_pending_version_come_with_it(admitting: Gateway) -> None:
    await push(admitting, files(), "?tag=task=chat")
    admitting.states[BASE] = "asleep"
    status, _ = await push(admitting, files(b"two"), "?tag=task=summary&visibility=private")
    assert (status, await labels(admitting)) == (202, ({"task": "chat"}, "public")), "the old version is served, under the old labels"
    await push(admitting, files(b"two"))
    admitting.states[BASE] = "ready"
    await push(admitting, files(b"two"))
    assert await labels(admitting) == ({"task": "summary"}, "private")


async def test_a_rejected_version_changes_no_labels(admitting: Gateway) -> None:
    await push(admitting, files(), "?tag=task=chat")
    admitting.engine.adapted = BASE_ROWS
    status, _ = await push(admitting, files(b"two"), "?tag=task=summary&visibility=private")
    assert (status, await labels(admitting)) == (400, ({"task": "chat"}, "public"))


async def test_a_name_that_serves_nothing_yet_is_hidden_from_the_start(admitting: Gateway) -> None:
    admitting.states[BASE] = "asleep"
    await push(admitting, files(), "?tag=task=chat&visibility=private")
    assert await labels(admitting) == ({"task": "chat"}, "private")


async def test_labels_of_what_waited_do_not_undo_later_ones(admitting: Gateway) -> None:
    await push(admitting, files())
    admitting.states[BASE] = "asleep"
    _, first = await push(admitting, files(b"two"), "?tag=task=first&tag=kept=yes&visibility=public")
    _, second = await push(admitting, files(b"three"), "?tag=task=second")
    await admitting.client.patch(URL, json={"visibility": "private"})
    for body in (second, first):
        admitting.services.registry.admissions.admit(adapter_of(admitting, body))
    assert await labels(admitting) == ({"task": "second", "kept": "yes"}, "private")


async def test_tags_that_have_no_room_any_more_do_not_keep_a_version_from_being_served(admitting: Gateway) -> None:
    await push(admitting, files())
    admitting.states[BASE] = "asleep"
    await push(admitting, files(b"two"), "?tag=one=more&visibility=private")
    many = {f"tag{number}": "x" for number in range(16)}
    assert (await admitting.client.patch(URL, json={"tags": many})).status_code == 200
    admitting.states[BASE] = "ready"
    assert (await push(admitting, files(b"two")))[0] == 200
    assert await labels(admitting) == (many, "private")


async def test_an_engine_that_fails_on_a_version_rejects_it(admitting: Gateway) -> None:
    admitting.engine.error = InternalError("it could not be loaded into the engine")
    status, body = await push(admitting, files())
    assert status == 400 and "could not be loaded" in body["error"]["message"]


async def test_a_base_that_fails_leaves_the_version_pending(admitting: Gateway) -> None:
    admitting.engine.base_error = InternalError("broken")
    status, _ = await push(admitting, files())
    assert status == 202
    admitting.engine.base_error = None
    assert await ask(admitting) == 200


async def test_rejected_content_may_be_tried_again(admitting: Gateway) -> None:
    admitting.engine.error = InternalError("a bad day")
    assert (await push(admitting, files()))[0] == 400
    admitting.engine.error = None
    status, body = await push(admitting, files())
    assert (status, body["status"]) == (200, "ready")
    assert await ask(admitting) == 200


async def test_a_pending_version_can_be_taken_back_and_stays_away(admitting: Gateway) -> None:
    admitting.states[BASE] = "asleep"
    _, body = await push(admitting, files())
    assert (await admitting.client.delete(f"{URL}/versions/{body['version']}")).status_code == 200
    assert await ask(admitting) == 404
    assert (await admitting.client.post(f"{URL}/versions/{body['version']}/undelete")).status_code == 409


async def test_what_is_refused_by_its_files_alone_can_be_read_about(tmp_path: Path) -> None:
    def refuse(folder: Path) -> Fit:
        raise InvalidAdapter(["r is 64, base tiny takes up to 16.", "weights hold NaN."])

    async with gateway(tmp_path, tries=True, inspect=refuse) as running:
        assert (await push(running, files()))[0] == 400
        (rejected,) = (await running.client.get(URL)).json()["rejected"]
        told = (await running.client.get(f"{URL}/versions/{rejected}")).json()
        assert told["status"] == "rejected" and told["reasons"] == ["r is 64, base tiny takes up to 16.", "weights hold NaN."]
        assert not list((tmp_path / "store").rglob("adapter_model.safetensors")), "nothing of it is stored"
