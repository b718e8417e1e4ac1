"""Canaries and shadows beside an alias: begun, changed, promoted, ended, and what everything else does to them, over both stores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapters_store.canary import Guard, place_of
from adapters_store.errors import Conflict, InvalidRequest, NotFound
from adapters_store.garbage import GarbageRules
from adapters_store.history import HISTORY_KEPT, Actor, AliasMove, trimmed
from adapters_store.layout import aliases_key, manifest_key
from adapters_store.names import ModelRef
from adapters_store.objects import ObjectStore
from adapters_store.registry import Registry
from adapters_store.validate import Fit
from adapters_store.versions import Versions
from tests.adapters_store.adapters import write_opaque

ANN = Actor("key1", "ann", "acme")
REF = ModelRef.parse("acme/support")
PEOPLE = [f"user {number}" for number in range(10_000)]


@pytest.fixture
def registry(store: ObjectStore) -> Registry:
    return Registry(store)


@pytest.fixture
def publish(registry: Registry, tmp_path: Path):
    def call(content: str) -> str:
        return registry.publish(write_opaque(tmp_path, content), "acme", "support", Fit("base", 4), created_by=ANN).adapter.version

    return call


@pytest.fixture
def versions(registry: Registry, publish) -> tuple[str, str]:
    """`production` serves the first; the second is there too."""
    one, two = publish("one"), publish("two")
    registry.aliases.roll_back("acme", "support", by=ANN)
    return one, two


def start(registry: Registry, version: str, weight: float, guard: Guard | None = None, alias: str = "production") -> None:
    registry.canaries.start("acme", "support", alias, version, weight=weight, guard=guard, by=ANN)


def told(registry: Registry, count: int) -> list[tuple[str, str | None, str | None, str]]:
    return [(move.why, move.before, move.after, move.note) for move in registry.aliases.history("acme", "support")[:count]]


def answering(registry: Registry, person: str) -> str:
    return registry.resolve(REF).for_person(REF, person).version


@pytest.mark.parametrize("weight", [0, 0.5, 10, 33.3, 50, 90, 100])
def test_weight_is_met_within_a_point_over_ten_thousand_users(registry: Registry, versions: tuple[str, str], weight: float) -> None:
    start(registry, versions[1], weight)
    resolved = registry.resolve(REF)
    on_canary = sum(resolved.for_person(REF, person).version == versions[1] for person in PEOPLE)
    assert on_canary / len(PEOPLE) * 100 == pytest.approx(weight, abs=1.0)
    assert on_canary == {0: 0, 100: len(PEOPLE)}.get(weight, on_canary)


def test_every_gateway_answers_a_person_by_the_same_version(store: ObjectStore, registry: Registry, versions: tuple[str, str]) -> None:
    start(registry, versions[1], 50)
    gateways = [Registry(store).resolve(REF) for _ in range(3)]
    for person in PEOPLE[:100]:
        assert len({gateway.for_person(REF, person) for gateway in gateways}) == 1


def test_raising_the_weight_takes_nobody_off_the_canary(registry: Registry, versions: tuple[str, str]) -> None:
    before: set[str] = set()
    for weight in (1, 5, 25, 80):
        start(registry, versions[1], weight)
        resolved = registry.resolve(REF)
        on_canary = {person for person in PEOPLE if resolved.for_person(REF, person).version == versions[1]}
        assert before < on_canary
        before = on_canary


def test_aliases_pick_different_people() -> None:
    first, second = ({person for person in PEOPLE if place_of(alias, person) < 10} for alias in ("a/b:production", "a/c:production"))
    assert len(first & second) < len(first) / 2


def test_whoever_names_a_version_or_another_alias_gets_no_canary(registry: Registry, versions: tuple[str, str]) -> None:
    one, two = versions
    registry.aliases.move("acme", "support", "stable", one, by=ANN)
    start(registry, two, 100)
    for name in (f"acme/support@{one}", "acme/support:stable"):
        ref = ModelRef.parse(name)
        assert registry.resolve(ref).for_person(ref, "anybody").version == one
    assert registry.read(REF).version == one, "what a name means for nobody in particular is what its alias serves"


def test_another_weight_is_the_same_trial_and_another_version_a_new_one(registry: Registry, versions: tuple[str, str], publish) -> None:
    one, two = versions
    start(registry, two[:8], 10, Guard(requests=50))
    first = registry.describe("acme", "support").canaries["production"]
    start(registry, two, 20, Guard(requests=50))
    raised = registry.describe("acme", "support").canaries["production"]
    assert (raised.trial, raised.started_at, raised.weight, raised.guard) == (first.trial, first.started_at, 20, Guard(requests=50))
    three = publish("three")
    registry.aliases.move("acme", "support", "production", one, by=ANN)
    start(registry, three, 20)
    assert registry.describe("acme", "support").canaries["production"].trial != first.trial


def test_each_step_is_told(registry: Registry, versions: tuple[str, str]) -> None:
    one, two = versions
    start(registry, two, 10)
    start(registry, two, 10)  # changes nothing
    start(registry, two, 12.5)
    registry.canaries.abort("acme", "support", "production", by=ANN)
    start(registry, two, 1)
    registry.canaries.promote("acme", "support", "production", by=ANN)
    assert told(registry, 5) == [
        ("promote", one, two, f"ended the canary of {two[:12]} at 1 %"),
        ("canary", one, one, f"{two[:12]} at 1 %"),
        ("abort", one, one, f"{two[:12]} at 12.5 %"),
        ("canary", one, one, f"{two[:12]} at 12.5 %"),
        ("canary", one, one, f"{two[:12]} at 10 %"),
    ]


def test_promoted_canary_serves_everybody_and_is_rolled_back_from(registry: Registry, versions: tuple[str, str]) -> None:
    one, two = versions
    start(registry, two, 10)
    adapter, _ = registry.canaries.promote("acme", "support", "production", by=ANN)
    assert adapter.version == two
    assert {answering(registry, person) for person in PEOPLE[:100]} == {two}
    assert registry.aliases.roll_back("acme", "support", by=ANN)[0].version == one


def test_aborted_canary_serves_nobody(registry: Registry, versions: tuple[str, str]) -> None:
    start(registry, versions[1], 100)
    registry.canaries.abort("acme", "support", "production", by=ANN)
    assert {answering(registry, person) for person in PEOPLE[:100]} == {versions[0]}
    for end in (registry.canaries.abort, registry.canaries.promote):
        with pytest.raises(NotFound, match="has no canary"):
            end("acme", "support", "production", by=ANN)


def test_tripped_canary_is_told_with_its_reason_once(registry: Registry, versions: tuple[str, str]) -> None:
    start(registry, versions[1], 10, Guard())
    trial = registry.describe("acme", "support").canaries["production"].trial
    assert not registry.canaries.trip("acme", "support", "production", "another", "slow")
    assert registry.canaries.trip("acme", "support", "production", trial, "slow")
    assert not registry.canaries.trip("acme", "support", "production", trial, "slow")
    assert told(registry, 1) == [("guard", versions[0], versions[0], f"{versions[1][:12]} at 10 %: slow")]
    assert registry.aliases.history("acme", "support")[0].by.key_id == "guard"


@pytest.mark.parametrize("end", ["publish", "move", "roll_back", "delete_alias", "retire"])
def test_whatever_moves_an_alias_ends_its_canary_and_shadow(registry: Registry, versions: tuple[str, str], publish, end: str) -> None:
    one, two = versions
    alias = "production" if end in ("publish", "roll_back", "retire") else "staging"
    if end == "roll_back":
        registry.aliases.move("acme", "support", alias, two, by=ANN)
        three = publish("three")
        registry.aliases.move("acme", "support", alias, three, by=ANN)
        start(registry, one, 10)
    else:
        registry.aliases.move("acme", "support", alias, one, by=ANN)
        start(registry, two, 10, alias=alias)
        registry.canaries.shadow("acme", "support", alias, two, share=5, by=ANN)
    ends = {
        "publish": lambda: publish("another"),
        "move": lambda: registry.aliases.move("acme", "support", alias, two, by=ANN),
        "roll_back": lambda: registry.aliases.roll_back("acme", "support", alias, by=ANN),
        "delete_alias": lambda: registry.aliases.delete("acme", "support", alias, by=ANN),
        "retire": lambda: registry.retirement.retire("acme", "support", by=ANN),
    }
    ends[end]()
    assert registry.aliases.history("acme", "support")[0].note.startswith("ended the canary of ")
    if end == "retire":
        registry.retirement.undelete("acme", "support", by=ANN)
    detail = registry.describe("acme", "support")
    assert (detail.canaries, detail.shadows) == ({}, {})


def test_move_to_where_the_alias_is_leaves_the_canary(registry: Registry, versions: tuple[str, str]) -> None:
    start(registry, versions[1], 10)
    registry.aliases.move("acme", "support", "production", versions[0], by=ANN)
    assert registry.describe("acme", "support").canaries


def test_version_that_is_tried_is_neither_retired_nor_collected(registry: Registry, versions: tuple[str, str]) -> None:
    one, two = versions
    start(registry, two, 0)
    with pytest.raises(Conflict, match="tried beside 'production'"):
        registry.retirement.retire_version("acme", "support", two)
    assert list(registry.garbage.collect(GarbageRules(0.0, 0.0), remove=True)) == []
    registry.canaries.abort("acme", "support", "production", by=ANN)
    registry.canaries.shadow("acme", "support", "production", two, share=1, by=ANN)
    with pytest.raises(Conflict, match="tried beside 'production'"):
        registry.retirement.retire_version("acme", "support", two)
    registry.canaries.unshadow("acme", "support", "production", by=ANN)
    registry.retirement.retire_version("acme", "support", two)
    with pytest.raises(NotFound, match="was retired"):
        start(registry, two, 10)
    assert registry.read(REF).version == one


def test_canary_of_what_is_not_there_is_refused(registry: Registry, versions: tuple[str, str]) -> None:
    one, two = versions
    with pytest.raises(Conflict, match=r"serves .* already"):
        start(registry, one, 10)
    with pytest.raises(NotFound, match="no alias 'staging'"):
        start(registry, two, 10, alias="staging")
    with pytest.raises(NotFound, match="does not exist"):
        start(registry, "0" * 64, 10)
    for weight in (-1, 100.5, float("nan")):
        with pytest.raises(InvalidRequest, match="give a percentage"):
            start(registry, two, weight)
    for guard in (Guard(requests=0), Guard(error_points=-1), Guard(ttft_ratio=0.5)):
        with pytest.raises(InvalidRequest, match="guard"):
            start(registry, two, 10, guard)


def test_canary_honours_if_match(registry: Registry, versions: tuple[str, str]) -> None:
    old = registry.describe("acme", "support").etag
    start(registry, versions[1], 10)
    with pytest.raises(Conflict):
        registry.canaries.abort("acme", "support", "production", by=ANN, if_match=old)
    now = registry.describe("acme", "support").etag
    assert registry.canaries.abort("acme", "support", "production", by=ANN, if_match=now) == registry.describe("acme", "support").etag


def test_what_a_newer_release_says_of_a_canary_is_kept(store: ObjectStore, registry: Registry, versions: tuple[str, str]) -> None:
    start(registry, versions[1], 10)
    registry.canaries.shadow("acme", "support", "production", versions[1], share=5, by=ANN)
    body = json.loads(store.get(aliases_key("acme", "support"))[0])
    body["canaries"]["production"]["ramp"] = body["shadows"]["production"]["ramp"] = [1, 2]
    store.put(aliases_key("acme", "support"), json.dumps(body).encode())
    start(registry, versions[1], 20)
    after = json.loads(store.get(aliases_key("acme", "support"))[0])
    assert after["canaries"]["production"]["ramp"] == after["shadows"]["production"]["ramp"] == [1, 2]
    assert after["canaries"]["production"]["weight"] == 20


def test_many_weights_do_not_make_the_history_forget_where_an_alias_came_from() -> None:
    moved = AliasMove(0.0, ANN, "move", "production", "a", "b")
    weights = tuple(AliasMove(0.0, ANN, "canary", "production", "b", "b") for _ in range(2 * HISTORY_KEPT))
    assert trimmed((moved, *weights), ["production"]) == (moved, *weights[-HISTORY_KEPT:])


def test_who_answers_for_an_alias_is_its_version_and_its_canary(registry: Registry, versions: tuple[str, str]) -> None:
    one, two = versions

    def serving(name: str, alias: str = "production") -> list[str]:
        return [adapter.version for adapter in registry.serving("acme", name, alias)]

    assert serving("support") == [one]
    start(registry, two, 10)
    assert serving("support") == [one, two]
    assert serving("support", "unknown") == serving("unknown") == []
    registry.retirement.retire("acme", "support", by=ANN)
    assert serving("support") == []


@pytest.mark.parametrize("tries", [False, True])
def test_version_whose_files_are_only_coming_again_is_neither_tried_nor_pointed_at(
    store: ObjectStore,
    registry: Registry,
    versions: tuple[str, str],
    publish,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tries: bool,
) -> None:
    """Its manifest was read a moment ago; since then it was collected, and somebody who published it again died on the way."""
    one, two = versions
    registry.retirement.retire_version("acme", "support", two)
    assert [found.removed for found in registry.garbage.collect(GarbageRules(0.0), remove=True)] == [True]

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Versions, "upload", die)
        Registry(store, tries=tries).publish(tmp_path / "two", "acme", "support", Fit("base", 4), created_by=ANN)

    with pytest.raises(NotFound, match="does not exist"):
        start(registry, two, weight=100)
    with pytest.raises(NotFound, match="does not exist"):
        registry.canaries.shadow("acme", "support", "production", two, share=100, by=ANN)
    with pytest.raises(NotFound, match="does not exist"):
        registry.aliases.move("acme", "support", "production", two, by=ANN)
    assert registry.publish_known("acme", "support", two, created_by=ANN) is None
    assert answering(Registry(store), "ann") == one
    assert publish("two") == two
    assert answering(Registry(store), "ann") == two


def test_canary_whose_files_are_not_there_leaves_everybody_to_the_alias(
    store: ObjectStore, registry: Registry, versions: tuple[str, str]
) -> None:
    one, two = versions
    start(registry, two, weight=100)
    store.delete(manifest_key("acme", "support", two))
    assert answering(Registry(store), "ann") == one
