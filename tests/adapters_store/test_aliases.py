"""Moving aliases, the history of it, and rolling back, over both stores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapters_store.errors import Conflict, InvalidRequest, NotFound
from adapters_store.history import HISTORY_KEPT, Actor, AliasMove, trimmed, version_before
from adapters_store.layout import aliases_key
from adapters_store.names import ModelRef
from adapters_store.objects import ObjectStore
from adapters_store.pointers import MAX_ALIASES
from adapters_store.registry import Registry
from adapters_store.validate import Fit
from tests.adapters_store.adapters import write_opaque

ANN, BOB = Actor("key1", "ann", "acme"), Actor("key2", "bob", "acme")
REF = ModelRef.parse("acme/support")


@pytest.fixture
def registry(store: ObjectStore) -> Registry:
    return Registry(store)


@pytest.fixture
def publish(registry: Registry, tmp_path: Path):
    def call(content: str, by: Actor = ANN) -> str:
        return registry.publish(write_opaque(tmp_path, content), "acme", "support", Fit("base", 4), created_by=by).adapter.version

    return call


def told(registry: Registry) -> list[tuple[str, str, str, str | None, str | None]]:
    return [(move.by.name, move.why, move.alias, move.before, move.after) for move in registry.aliases.history("acme", "support")]


def test_every_move_is_told_with_who_why_from_and_to(registry: Registry, publish) -> None:
    one, two = publish("one"), publish("two", BOB)
    registry.aliases.move("acme", "support", "staging", one[:8], by=ANN)
    registry.aliases.roll_back("acme", "support", by=BOB)
    registry.aliases.delete("acme", "support", "staging", by=BOB)
    registry.retirement.retire("acme", "support", by=ANN)
    assert told(registry) == [
        ("ann", "retire", "production", one, None),
        ("bob", "delete_alias", "staging", one, None),
        ("bob", "rollback", "production", two, one),
        ("ann", "move", "staging", None, one),
        ("bob", "publish", "production", one, two),
        ("ann", "publish", "production", None, one),
    ]
    times = [move.at for move in registry.aliases.history("acme", "support")]
    assert times == sorted(times, reverse=True)


def test_a_move_to_where_the_alias_is_leaves_no_trace(registry: Registry, publish) -> None:
    one = publish("one")
    publish("one")
    registry.aliases.move("acme", "support", "production", one, by=ANN)
    assert len(told(registry)) == 1


def test_rolling_back_twice_goes_back_two_versions(registry: Registry, publish) -> None:
    one, two, _ = publish("one"), publish("two"), publish("three")
    for version in (two, one):
        assert registry.aliases.roll_back("acme", "support", by=ANN)[0].version == version
        assert registry.read(REF).version == version
    with pytest.raises(Conflict, match="no version before"):
        registry.aliases.roll_back("acme", "support", by=ANN)
    four = publish("four")
    assert registry.aliases.roll_back("acme", "support", by=ANN)[0].version == one != four


def test_rolling_back_to_a_retired_version_is_refused(registry: Registry, publish) -> None:
    one, two = publish("one"), publish("two")
    registry.retirement.retire_version("acme", "support", one)
    with pytest.raises(Conflict, match="is retired"):
        registry.aliases.roll_back("acme", "support", by=ANN)
    assert registry.read(REF).version == two


def test_rolling_back_an_unknown_alias_is_not_found(registry: Registry, publish) -> None:
    publish("one")
    with pytest.raises(NotFound, match="no alias 'staging'"):
        registry.aliases.roll_back("acme", "support", "staging", by=ANN)
    with pytest.raises(NotFound):
        registry.aliases.roll_back("acme", "unknown", by=ANN)


def test_rolling_back_honours_if_match(registry: Registry, publish) -> None:
    one, two = publish("one"), publish("two")
    etag = registry.describe("acme", "support").etag
    registry.aliases.move("acme", "support", "staging", two, by=BOB)
    with pytest.raises(Conflict):
        registry.aliases.roll_back("acme", "support", by=ANN, if_match=etag)
    assert registry.read(REF).version == two
    etag = registry.describe("acme", "support").etag
    adapter, moved = registry.aliases.roll_back("acme", "support", by=ANN, if_match=etag)
    assert (adapter.version, registry.describe("acme", "support").etag) == (one, moved)


def test_a_store_without_history_serves_on_and_begins_one(store: ObjectStore, registry: Registry, publish) -> None:
    one, two = publish("one"), publish("two")
    body = json.loads(store.get(aliases_key("acme", "support"))[0])
    del body["history"]
    store.put(aliases_key("acme", "support"), json.dumps(body).encode())
    assert registry.read(REF).version == two
    with pytest.raises(Conflict, match="no version before"):
        registry.aliases.roll_back("acme", "support", by=ANN)
    publish("three")
    assert registry.aliases.roll_back("acme", "support", by=ANN)[0].version == two
    assert one != two


def test_what_a_newer_release_wrote_is_kept(store: ObjectStore, publish) -> None:
    publish("one")
    body = json.loads(store.get(aliases_key("acme", "support"))[0])
    body["split"] = {"production": 10}
    body["history"][0]["percent"] = 10
    store.put(aliases_key("acme", "support"), json.dumps(body).encode())
    publish("two")
    after = json.loads(store.get(aliases_key("acme", "support"))[0])
    assert (after["split"], after["history"][0]["percent"]) == ({"production": 10}, 10)


def test_the_number_of_aliases_is_bounded(store: ObjectStore, registry: Registry, publish) -> None:
    one = publish("one")
    body = json.loads(store.get(aliases_key("acme", "support"))[0])
    body["aliases"].update({f"alias-{number}": one for number in range(MAX_ALIASES - 1)})
    store.put(aliases_key("acme", "support"), json.dumps(body).encode())
    with pytest.raises(InvalidRequest, match="at most 100"):
        registry.aliases.move("acme", "support", "one-more", one, by=ANN)
    registry.aliases.move("acme", "support", "alias-1", one, by=ANN)


def moves(*rows: tuple[str, str | None, str | None], why: str = "move") -> tuple[AliasMove, ...]:
    return tuple(AliasMove(0.0, ANN, why, alias, before, after) for alias, before, after in rows)


def test_history_is_bounded_and_keeps_the_last_move_of_a_quiet_alias() -> None:
    quiet = moves(("stable", None, "a"), ("stable", "a", "b"), ("gone", None, "a"))
    busy = moves(*(("production", str(number), str(number + 1)) for number in range(3 * HISTORY_KEPT)))
    kept = trimmed((*quiet, *busy), ["stable", "production"])
    assert kept == (quiet[1], *busy[-HISTORY_KEPT:])
    assert version_before(kept, "stable", "b") == "a"
    assert trimmed(kept, ["stable", "production"]) == kept


@pytest.mark.parametrize(
    ("rows", "now", "before"),
    [
        ([], "a", None),
        ([("move", None, "a")], "a", None),
        ([("move", "a", "b")], "b", "a"),
        ([("move", "a", "b"), ("rollback", "b", "a")], "a", None),
        ([("move", "a", "b"), ("rollback", "b", "a"), ("move", "a", "b")], "b", "a"),
        ([("move", "a", "b"), ("delete_alias", "b", None), ("move", None, "c")], "c", "b"),
        ([("move", "a", "b"), ("retire", "b", None), ("undelete", None, "b")], "b", "a"),
        ([("move", "a", "b"), ("move", "b", "a")], "a", "b"),
        ([("move", "a", "b")], "c", None),
    ],
)
def test_version_before(rows: list[tuple[str, str | None, str | None]], now: str, before: str | None) -> None:
    history = [AliasMove(0.0, ANN, why, "production", left, came) for why, left, came in rows]
    assert version_before(history, "production", now) == before
