"""API keys, over both stores: found by the secret, kept as a hash."""

from __future__ import annotations

import json

import pytest

from adapters_store.access import SEES_ALL, Scope, Viewer
from adapters_store.errors import Conflict, InvalidRequest, NotFound, PermissionDenied
from adapters_store.keys import KeyRing
from adapters_store.objects import ObjectStore


def test_created_key_is_found_by_its_secret_alone(store: ObjectStore) -> None:
    ring = KeyRing(store)
    secret, record = ring.create("laptop", tenant="acme")
    assert ring.find(secret) == record
    assert (record.name, record.tenant) == ("laptop", "acme")
    for wrong in (secret + "x", secret[:-1], "", record.id, "é", "a b", "x" * 10_000, "\ud800"):
        assert ring.find(wrong) is None


def test_secret_is_nowhere_in_the_store(store: ObjectStore) -> None:
    secret, record = KeyRing(store).create("laptop")
    for info in store.list("").objects:
        assert secret not in info.key
        assert secret.encode() not in store.get(info.key)[0]
    assert secret.startswith("lk-")
    assert len(secret) > 40
    assert record.id not in secret


def test_same_id_with_another_hash_is_not_a_key(store: ObjectStore) -> None:
    secret, record = KeyRing(store).create("laptop")
    key = f"keys/{record.id}.json"
    body = json.loads(store.get(key)[0])
    store.put(key, json.dumps({**body, "sha256": body["sha256"][:16] + "0" * 48}).encode())
    assert KeyRing(store).find(secret) is None


def test_preset_secret_is_one_key_however_often_it_is_created(store: ObjectStore) -> None:
    ring = KeyRing(store)
    secret, first = ring.create("first", secret="preset-secret")
    assert ring.create("again", secret="preset-secret") == (secret, first)
    assert ring.list() == (first,)


def test_keys_are_distinct_and_listed_oldest_first(store: ObjectStore) -> None:
    ring = KeyRing(store)
    records = [ring.create(f"key-{number}")[1] for number in range(3)]
    assert ring.list() == tuple(records)
    assert len({record.id for record in records}) == 3


def test_a_new_key_may_ask_and_upload_for_its_tenant_alone(store: ObjectStore) -> None:
    secret, record = KeyRing(store).create("ci", tenant="acme")
    assert KeyRing(store).find(secret) == record
    assert record.scopes == {Scope.INFER, Scope.UPLOAD}
    assert (record.is_admin, record.owns("acme"), record.owns("beta"), record.viewer) == (False, True, False, Viewer("acme"))
    record.require(Scope.UPLOAD)
    with pytest.raises(PermissionDenied, match="scope admin"):
        record.require(Scope.ADMIN)


def test_an_admin_key_may_do_everything_for_everybody(store: ObjectStore) -> None:
    _, record = KeyRing(store).create("first", scopes=[Scope.ADMIN])
    assert all(record.may(scope) for scope in Scope)
    assert (record.owns("anybody"), record.viewer) == (True, SEES_ALL)


def test_a_key_from_before_there_were_scopes_is_an_admins(store: ObjectStore) -> None:
    secret, record = KeyRing(store).create("old")
    rewrite(store, record.id, scopes=None)
    found = KeyRing(store).find(secret)
    assert found is not None and found.is_admin


def test_scopes_of_a_newer_release_give_nothing(store: ObjectStore) -> None:
    secret, record = KeyRing(store).create("new")
    rewrite(store, record.id, scopes=["infer", "telepathy"])
    found = KeyRing(store).find(secret)
    assert found is not None and found.scopes == {Scope.INFER}
    rewrite(store, record.id, scopes=[])
    found = KeyRing(store).find(secret)
    assert found is not None and not any(found.may(scope) for scope in Scope)


def test_a_revoked_key_is_unknown_and_is_not_issued_again(store: ObjectStore) -> None:
    ring = KeyRing(store)
    secret, record = ring.create("first", secret="preset-secret")
    revoked = ring.revoke(record.id)
    assert revoked.revoked_at is not None
    assert ring.find(secret) is None
    assert ring.list() == (revoked,)
    assert ring.revoke(record.id) == revoked
    with pytest.raises(Conflict, match="was revoked"):
        ring.create("first", secret="preset-secret")
    for unknown in ("0" * 16, "../aliases", ""):
        with pytest.raises(NotFound):
            ring.revoke(unknown)


def rewrite(store: ObjectStore, key_id: str, **changes: object) -> None:
    body = {**json.loads(store.get(f"keys/{key_id}.json")[0]), **changes}
    kept = {name: value for name, value in body.items() if value is not None}
    store.put(f"keys/{key_id}.json", json.dumps(kept).encode())


@pytest.mark.parametrize("secret", ["", "with space", "tab\t", "é", "x" * 513])
def test_secret_that_no_header_can_carry_is_refused(store: ObjectStore, secret: str) -> None:
    with pytest.raises(InvalidRequest):
        KeyRing(store).create("laptop", secret=secret)
