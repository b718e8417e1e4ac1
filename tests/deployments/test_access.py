"""Who may see and do what over HTTP: what a key may not see is 404 in the words of an unknown name, what it may not do is 403."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters_store.access import Scope
from adapters_store.adoption import AdoptionRules
from adapters_store.errors import InvalidAdapter
from adapters_store.history import Actor
from adapters_store.keys import KeyRing
from adapters_store.objects import open_store
from adapters_store.registry import Registry
from adapters_store.validate import Fit
from deployments.api.app import PREFIXES, build_routes
from deployments.api.context import RequestContext
from tests.deployments.gateway import BASE, CHAT, Gateway

OPEN, SECRET = "acme/open", "acme/secret"
KEYS = {
    "admin": ("ops", [Scope.ADMIN]),
    "owner": ("acme", [Scope.INFER, Scope.UPLOAD]),
    "reader": ("acme", [Scope.INFER]),
    "writer": ("acme", [Scope.UPLOAD]),
    "other": ("beta", [Scope.INFER, Scope.UPLOAD]),
}
FILES = [("files", ("adapter_config.json", b"{}")), ("files", ("adapter_model.safetensors", b"weights"))]
ANNOUNCED = {
    "files": [
        {"name": name, "size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in (("adapter_config.json", b"{}"), ("adapter_model.safetensors", b"in parts"))
    ]
}
UPLOAD = "0" * 32


@pytest.fixture
async def api(api: Gateway, tmp_path: Path) -> Gateway:
    """With a key of each kind, and a public and a private adapter of acme."""
    ring = KeyRing(open_store(f"file://{tmp_path / 'store'}"))
    for name, (tenant, scopes) in KEYS.items():
        ring.create(name, tenant=tenant, secret=f"key-of-{name}", scopes=scopes)
    for adapter, visibility in ((OPEN, "public"), (SECRET, "private")):
        answer = await ask(api, "owner", "POST", f"adapters/{adapter}/versions?visibility={visibility}", files=FILES)
        assert answer.status_code == 201, answer.text
    return api


async def ask(api: Gateway, who: str, method: str, path: str, **request: Any) -> httpx.Response:
    return await api.client.request(method, f"/api/v1/{path}", headers={"authorization": f"Bearer key-of-{who}"}, **request)


def changes(adapter: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Every call that changes an adapter."""
    at = f"adapters/{adapter}"
    return [
        ("POST", f"{at}/versions", {"files": FILES}),
        ("POST", f"{at}/versions", {"json": {"source": "s3://elsewhere/x"}}),
        ("POST", f"{at}/uploads", {"json": ANNOUNCED}),
        ("GET", f"{at}/uploads/{UPLOAD}", {}),
        ("PUT", f"{at}/uploads/{UPLOAD}/files/adapter_config.json/parts/0", {"content": b"{}"}),
        ("POST", f"{at}/uploads/{UPLOAD}/commit", {}),
        ("DELETE", f"{at}/uploads/{UPLOAD}", {}),
        ("PATCH", at, {"json": {"tags": {"a": "b"}}}),
        ("PUT", f"{at}/aliases/beta", {"json": {"version": "a" * 64}}),
        ("POST", f"{at}/aliases/production/rollback", {}),
        ("DELETE", f"{at}/aliases/beta", {}),
        ("DELETE", f"{at}/versions/{'a' * 64}", {}),
        ("POST", f"{at}/versions/{'a' * 64}/undelete", {}),
        ("DELETE", at, {}),
        ("POST", f"{at}/undelete", {}),
    ]


def reads(adapter: str) -> list[tuple[str, str, dict[str, Any]]]:
    at = f"adapters/{adapter}"
    return [
        ("GET", at, {}),
        ("GET", f"{at}/history", {}),
        ("GET", f"models/{adapter}", {}),
        ("GET", f"models/{adapter}:none", {}),
        ("POST", "chat/completions", {"json": {**CHAT, "model": adapter}}),
        ("POST", "chat/completions", {"json": {**CHAT, "model": f"{adapter}:none"}}),
        ("POST", "chat/completions", {"json": {**CHAT, "model": f"{adapter}@{'a' * 12}"}}),
    ]


async def test_what_is_hidden_answers_as_what_does_not_exist(api: Gateway) -> None:
    unknown = "acme/unknown"
    for (method, path, request), (_, other_path, other_request) in zip(
        changes(SECRET) + reads(SECRET), changes(unknown) + reads(unknown), strict=True
    ):
        hidden = await ask(api, "other", method, path, **request)
        absent = await ask(api, "other", method, other_path, **other_request)
        assert hidden.status_code == 404, (method, path, hidden.text)
        assert hidden.text == absent.text.replace("unknown", "secret"), (method, path)
    assert api.dispatch.asked == []


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("way", ["the short way", "FastAPI"])
async def test_chats_obey_on_every_path_that_they_come_by(api: Gateway, prefix: str, way: str) -> None:
    """Chats are led past FastAPI (app.py), and its dependencies with it."""
    app = api.app if way == "the short way" else RequestContext(build_routes(api.services), api.services.metrics)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        for who, model, status in (
            ("owner", SECRET, 200), ("admin", SECRET, 200), ("other", SECRET, 404), ("writer", SECRET, 403), ("writer", BASE, 403),
            ("other", OPEN, 200), ("nobody", OPEN, 401),
        ):  # fmt: skip
            key = {"authorization": f"Bearer key-of-{who}"}
            answer = await client.post(f"{prefix}/chat/completions", json={**CHAT, "model": model}, headers=key)
            assert answer.status_code == status, (who, model, answer.text)
    assert len(api.dispatch.asked) == 3


async def test_what_is_seen_and_may_not_be_changed_is_403(api: Gateway) -> None:
    for who in ("other", "reader"):
        for method, path, request in changes(OPEN):
            answer = await ask(api, who, method, path, **request)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "permission_denied"), (who, method, path)
    answer = await ask(api, "reader", "DELETE", f"adapters/{SECRET}")
    assert answer.status_code == 403, "its own tenant's"
    assert (await ask(api, "owner", "GET", f"adapters/{OPEN}")).json()["aliases"].keys() == {"production"}


async def test_a_key_without_the_scope_to_ask_gets_403_for_what_it_sees(api: Gateway) -> None:
    for model in (BASE, OPEN, SECRET):
        answer = await ask(api, "writer", "POST", "chat/completions", json={**CHAT, "model": model})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "permission_denied")
    assert api.dispatch.asked == []


@pytest.mark.parametrize("who", ["admin", "owner", "reader"])
async def test_the_owner_asks_what_is_private(api: Gateway, who: str) -> None:
    assert (await ask(api, who, "POST", "chat/completions", json={**CHAT, "model": SECRET})).status_code == 200
    shown = (await ask(api, who, "GET", f"adapters/{SECRET}")).json()
    assert (shown["visibility"], shown["tags"]) == ("private", {})


async def test_everybody_asks_what_is_public(api: Gateway) -> None:
    assert (await ask(api, "other", "POST", "chat/completions", json={**CHAT, "model": OPEN})).status_code == 200


async def test_listings_hold_what_the_key_sees(api: Gateway) -> None:
    for who, seen in (("admin", [OPEN, SECRET]), ("owner", [OPEN, SECRET]), ("other", [OPEN])):
        assert [row["id"] for row in (await ask(api, who, "GET", "adapters")).json()["data"]] == seen
        assert [row["id"] for row in (await ask(api, who, "GET", "models")).json()["data"]] == [BASE, *seen]


async def test_a_change_of_visibility_counts_when_it_returns(api: Gateway) -> None:
    chat = {"json": {**CHAT, "model": OPEN}}
    assert (await ask(api, "other", "POST", "chat/completions", **chat)).status_code == 200
    hidden = await ask(api, "owner", "PATCH", f"adapters/{OPEN}", json={"visibility": "private"})
    assert (hidden.status_code, hidden.json()["visibility"]) == (200, "private")
    assert (await ask(api, "other", "POST", "chat/completions", **chat)).status_code == 404
    assert (await ask(api, "owner", "POST", "chat/completions", **chat)).status_code == 200
    await ask(api, "owner", "PATCH", f"adapters/{OPEN}", json={"visibility": "public"})
    assert (await ask(api, "other", "POST", "chat/completions", **chat)).status_code == 200


async def test_a_version_keeps_the_visibility_of_its_adapter(api: Gateway) -> None:
    files = [*FILES[:1], ("files", ("adapter_model.safetensors", b"newer"))]
    assert (await ask(api, "owner", "POST", f"adapters/{SECRET}/versions", files=files)).status_code == 201
    assert (await ask(api, "other", "GET", f"adapters/{SECRET}")).status_code == 404


async def send_in_parts(api: Gateway, who: str, adapter: str) -> str:
    """Announce and send; the upload's URL, ready for its commit."""
    begun = await ask(api, who, "POST", f"adapters/{adapter}/uploads", json=ANNOUNCED)
    assert begun.status_code == 201, begun.text
    upload = f"adapters/{adapter}/uploads/{begun.json()['id']}"
    for name, data in (("adapter_config.json", b"{}"), ("adapter_model.safetensors", b"in parts")):
        sent = await ask(api, who, "PUT", f"{upload}/files/{name}/parts/0", content=data)
        assert sent.status_code in (204, 400), sent.text  # what a version holds already has no place
    return upload


async def test_a_resumable_upload_is_of_the_key_that_began_it(api: Gateway) -> None:
    """Not even another key of its tenant goes on with it, or sees it."""
    upload = await send_in_parts(api, "owner", OPEN)
    for method, path, request in (
        ("GET", upload, {}),
        ("PUT", f"{upload}/files/adapter_config.json/parts/0", {"content": b"[]"}),
        ("POST", f"{upload}/commit", {}),
        ("DELETE", upload, {}),
    ):
        assert (await ask(api, "writer", method, path, **request)).status_code == 404, (method, path)
        elsewhere = path.replace(OPEN, SECRET)
        assert (await ask(api, "owner", method, elsewhere, **request)).status_code == 404, "another adapter's"
    assert (await ask(api, "owner", "POST", f"{upload}/commit")).status_code == 201


async def test_a_commit_publishes_with_its_labels_and_for_its_key(api: Gateway) -> None:
    upload = await send_in_parts(api, "owner", "acme/parts")
    assert (await ask(api, "other", "GET", "adapters/acme/parts")).status_code == 404, "nothing of it is published yet"
    committed = await ask(api, "owner", "POST", f"{upload}/commit?visibility=private&tag=task=chat")
    assert committed.status_code == 201, committed.text
    shown = (await ask(api, "owner", "GET", "adapters/acme/parts")).json()
    assert (shown["visibility"], shown["tags"]) == ("private", {"task": "chat"})
    assert (await ask(api, "other", "GET", "adapters/acme/parts")).status_code == 404
    [move] = (await ask(api, "owner", "GET", "adapters/acme/parts/history")).json()["data"]
    assert (move["why"], move["by"]["name"], move["to"]) == ("publish", "owner", committed.json()["version"])


async def test_content_that_is_there_is_committed_with_labels_too(api: Gateway) -> None:
    await ask(api, "owner", "POST", f"{await send_in_parts(api, 'owner', OPEN)}/commit")
    begun = await ask(api, "owner", "POST", f"adapters/{OPEN}/uploads", json=ANNOUNCED)
    again = await ask(api, "owner", "POST", f"adapters/{OPEN}/uploads/{begun.json()['id']}/commit?visibility=private")
    assert again.status_code == 200, again.text
    assert (await ask(api, "other", "GET", f"adapters/{OPEN}")).status_code == 404


async def test_the_same_content_uploaded_as_private_is_hidden_when_that_returns(api: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but who may see it has changed, and that has to reach every gateway too."""
    monkeypatch.setattr(api.services.resolver, "_limits", type(api.services.resolver._limits)(lease_seconds=0.5))
    chat = {"json": {**CHAT, "model": OPEN}}
    assert (await ask(api, "other", "POST", "chat/completions", **chat)).status_code == 200
    again = await ask(api, "owner", "POST", f"adapters/{OPEN}/versions?visibility=private", files=FILES)
    assert again.status_code == 200
    assert (await ask(api, "other", "POST", "chat/completions", **chat)).status_code == 404


async def test_history_does_not_name_the_owners_keys_to_others(api: Gateway) -> None:
    own = (await ask(api, "reader", "GET", f"adapters/{OPEN}/history")).json()["data"][0]["by"]
    assert (own["name"], own["tenant"], bool(own["key"])) == ("owner", "acme", True)
    seen = (await ask(api, "other", "GET", f"adapters/{OPEN}/history")).json()["data"][0]["by"]
    assert seen == {"key": None, "name": None, "tenant": "acme"}


async def test_visibility_costs_no_store_read_per_request(api: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.services.resolver, "_limits", type(api.services.resolver._limits)(lease_seconds=60.0))
    chat = {"json": {**CHAT, "model": SECRET}}
    await ask(api, "owner", "POST", "chat/completions", **chat)
    await ask(api, "other", "POST", "chat/completions", **chat)
    monkeypatch.setattr(api.services.registry, "resolve", lambda ref: pytest.fail("the store was read"))
    assert (await ask(api, "owner", "POST", "chat/completions", **chat)).status_code == 200
    assert (await ask(api, "other", "POST", "chat/completions", **chat)).status_code == 404


async def test_tags_are_set_at_upload_changed_and_searched(api: Gateway) -> None:
    upload = await ask(api, "owner", "POST", "adapters/acme/tagged/versions?tag=task=chat&tag=team=a%20b", files=FILES)
    assert upload.status_code == 201
    changed = await ask(api, "owner", "PATCH", "adapters/acme/tagged", json={"tags": {"task": "sum", "team": None}})
    assert (changed.json()["tags"], changed.json()["visibility"]) == ({"task": "sum"}, "public")
    for query, found in (("tag=task=sum", 1), ("tag=task=chat", 0), (f"tag=task=sum&base={BASE}", 1), ("base=none", 0)):
        rows = (await ask(api, "other", "GET", f"adapters?{query}")).json()["data"]
        assert len(rows) == found, query
    assert (await ask(api, "owner", "GET", "adapters?tag=task=sum")).json()["data"][0]["tags"] == {"task": "sum"}


@pytest.mark.parametrize(
    ("method", "path", "body", "param"),
    [
        ("POST", "adapters/acme/bad/versions?tag=none", None, "tag"),
        ("POST", "adapters/acme/bad/versions?tag=a=1&tag=a=2", None, "tag"),
        ("POST", f"adapters/acme/bad/versions?tag=a={'x' * 129}", None, "tags"),
        ("POST", "adapters/acme/bad/versions?visibility=hidden", None, "visibility"),
        ("PATCH", f"adapters/{OPEN}", {"tags": {"a": 1}}, "tags.a"),
        ("PATCH", f"adapters/{OPEN}", {"visibility": "hidden"}, "visibility"),
        ("PATCH", f"adapters/{OPEN}", {"more": 1}, "more"),
        ("PATCH", f"adapters/{OPEN}", {"tags": {f"k{n}": "x" for n in range(17)}}, "tags"),
        ("GET", "adapters?tag=x", None, "tag"),
    ],
)
async def test_labels_that_are_none_are_refused(api: Gateway, method: str, path: str, body: Any, param: str) -> None:
    request = {"json": body} if body is not None else {"files": FILES} if method == "POST" else {}
    answer = await ask(api, "owner", method, path, **request)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


async def test_changing_labels_honours_if_match(api: Gateway) -> None:
    etag = (await ask(api, "owner", "GET", f"adapters/{OPEN}")).headers["etag"]
    headers = {"authorization": "Bearer key-of-owner", "if-match": etag}
    url, body = f"/api/v1/adapters/{OPEN}", {"tags": {"a": "b"}}
    first = await api.client.patch(url, json=body, headers=headers)
    assert (first.status_code, first.headers["etag"] != etag) == (200, True)
    assert (await api.client.patch(url, json={"tags": {"a": "c"}}, headers=headers)).status_code == 409


async def test_every_route_behind_a_key_asks_for_it(api: Gateway) -> None:
    for method, path, request in [*changes(OPEN), *reads(OPEN), ("GET", "adapters?limit=nonsense", {}), ("GET", "models", {})]:
        answer = await api.client.request(method, f"/api/v1/{path}", headers={"authorization": "Bearer wrong"}, **request)
        assert answer.status_code == 401, (method, path)


async def test_a_refused_copy_of_files_over_a_private_adapter_stays_hidden(api: Gateway, tmp_path) -> None:
    """The reasons name what lies there."""

    def refuse(folder) -> Fit:
        raise InvalidAdapter(["secret reason"])

    store = open_store(f"file://{tmp_path / 'store'}")
    registry = Registry(store, adoption=AdoptionRules(refuse))
    registry.retirement.retire("acme", "secret", by=Actor("k"))
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        store.put(f"adapters/{SECRET}/{file}", b"{}")
    api.services.resolver._registry = registry
    api.services.resolver.forget("acme", "secret")
    for who, status in (("owner", 400), ("other", 404)):
        answer = await ask(api, who, "POST", "chat/completions", json={**CHAT, "model": SECRET})
        assert answer.status_code == status, answer.text


async def test_why_a_version_of_a_public_adapter_is_not_served_is_its_owners_to_know(api: Gateway, tmp_path: Path) -> None:
    """The reasons may quote golden prompts."""
    trying = Registry(open_store(f"file://{tmp_path / 'store'}"), tries=True)
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_text("new")
    version = trying.publish(folder, "acme", "open", Fit(BASE, 8), created_by=Actor("k"), alias="beta").adapter
    chat = {"json": {**CHAT, "model": version.exact_name}}
    waiting = await ask(api, "other", "POST", "chat/completions", **chat)
    assert (waiting.status_code, api.dispatch.asked) == (404, []), "a stranger's request has it tried"
    trying.admissions.reject(version, ["golden prompt 1 quotes a secret."])
    told = {who: await ask(api, who, "POST", "chat/completions", **chat) for who in ("owner", "other")}
    assert told["owner"].status_code == told["other"].status_code == 404
    assert "quotes a secret" in told["owner"].text
    assert "secret" not in told["other"].text and told["other"].json()["error"] == waiting.json()["error"]
