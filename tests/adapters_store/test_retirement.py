"""Taken away, given back, and collected as garbage, also while somebody publishes; over both stores."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from adapters_store import garbage
from adapters_store.errors import Conflict, NotFound, Unavailable
from adapters_store.garbage import GarbageFound, GarbageRules
from adapters_store.history import Actor
from adapters_store.layout import file_key, manifest_key
from adapters_store.names import ModelRef
from adapters_store.objects import ObjectStore
from adapters_store.registry import Registry
from adapters_store.scratch import leftovers, remove
from adapters_store.validate import Fit
from tests.adapters_store.adapters import write_opaque
from tests.adapters_store.faults import FaultyStore

BY = Actor("key1", "ann", "acme")
REF = ModelRef.parse("acme/support")
AT_ONCE, NEVER = GarbageRules(0.0, 0.0), GarbageRules(3600.0, 3600.0)

Publish = Callable[..., str]


@pytest.fixture
def registry(store: ObjectStore) -> Registry:
    return Registry(store)


@pytest.fixture
def publish(registry: Registry, tmp_path: Path) -> Publish:
    def call(content: str, through: Registry | None = None) -> str:
        folder, fit = write_opaque(tmp_path, content), Fit("base", 4)
        return (through or registry).publish(folder, "acme", "support", fit, created_by=BY).adapter.version

    return call


def collect(registry: Registry, rules: GarbageRules = AT_ONCE, *, remove: bool = True) -> list[GarbageFound]:
    return list(registry.garbage.collect(rules, remove=remove))


def is_whole(store: ObjectStore, version: str) -> bool:
    """Whether every file that the version's manifest names is there."""
    adapter = Registry(store).read(ModelRef("acme", "support", None, version))
    return all(store.head(file_key("acme", "support", version, file.name)) is not None for file in adapter.files)


def test_a_deleted_adapter_comes_back_with_its_versions_and_aliases(registry: Registry, publish: Publish) -> None:
    one, two = publish("one"), publish("two")
    registry.aliases.move("acme", "support", "stable", one, by=BY)
    registry.retirement.retire("acme", "support", by=BY)
    with pytest.raises(NotFound):
        registry.read(REF)
    registry.retirement.undelete("acme", "support", by=BY)
    detail = registry.describe("acme", "support")
    assert detail.aliases == {"production": two, "stable": one}
    assert {adapter.version for adapter in detail.versions} == {one, two}
    assert registry.list_adapters().items[0].version == two
    assert [move.why for move in registry.aliases.history("acme", "support")][:2] == ["undelete", "undelete"]
    assert registry.aliases.roll_back("acme", "support", by=BY)[0].version == one


def test_a_version_that_was_retired_before_stays_retired_when_the_adapter_comes_back(registry: Registry, publish: Publish) -> None:
    one, two = publish("one"), publish("two")
    registry.retirement.retire_version("acme", "support", one)
    registry.retirement.retire("acme", "support", by=BY)
    registry.retirement.undelete("acme", "support", by=BY)
    assert [adapter.version for adapter in registry.describe("acme", "support").versions] == [two]
    registry.retirement.undelete_version("acme", "support", one[:12])
    assert registry.read(ModelRef("acme", "support", None, one)).version == one


def test_what_is_not_deleted_or_published_again_is_not_undeleted(registry: Registry, publish: Publish) -> None:
    publish("one")
    with pytest.raises(Conflict, match="not deleted"):
        registry.retirement.undelete("acme", "support", by=BY)
    registry.retirement.retire("acme", "support", by=BY)
    with pytest.raises(NotFound):
        registry.retirement.retire("acme", "support", by=BY)
    two = publish("two")
    with pytest.raises(Conflict, match="published again"):
        registry.retirement.undelete("acme", "support", by=BY)
    assert registry.read(REF).version == two


def test_deleting_what_only_waited_keeps_what_was_deleted_before(store: ObjectStore, publish: Publish) -> None:
    trying = Registry(store, tries=True)
    one = publish("one")
    trying.retirement.retire("acme", "support", by=BY)
    two = publish("two", trying)
    trying.retirement.retire("acme", "support", by=BY)
    trying.retirement.undelete("acme", "support", by=BY)
    detail = trying.describe("acme", "support")
    assert (detail.aliases, [adapter.version for adapter in detail.versions]) == ({"production": one}, [one])
    assert detail.rejected == (two,)


def test_garbage_is_what_was_retired_a_grace_period_ago(store: ObjectStore, registry: Registry, publish: Publish) -> None:
    one, two, three = publish("one"), publish("two"), publish("three")
    registry.retirement.retire_version("acme", "support", one)
    assert collect(registry, NEVER) == []
    (dry,) = collect(registry, remove=False)
    assert (dry.version, dry.why, dry.files, dry.removed) == (one, "retired", 3, False)
    assert dry.size_bytes > 0
    assert collect(registry) == [replace(dry, removed=True)]
    assert store.list(f"adapters/acme/support/versions/{one}").objects == ()
    assert is_whole(store, two) and is_whole(store, three), "what no alias names any more, and was not retired, was removed"
    assert collect(registry) == []
    with pytest.raises((Conflict, NotFound)):
        registry.retirement.undelete_version("acme", "support", one)
    with pytest.raises(NotFound):
        registry.read(ModelRef("acme", "support", None, one))
    with pytest.raises(Conflict, match=r"no version before|is retired"):
        for _ in range(3):
            registry.aliases.roll_back("acme", "support", by=BY)


def test_a_deleted_adapter_is_collected_and_can_be_published_again(store: ObjectStore, registry: Registry, publish: Publish) -> None:
    one = publish("one")
    registry.retirement.retire("acme", "support", by=BY)
    assert [found.removed for found in collect(registry)] == [True]
    with pytest.raises(Conflict, match="were removed"):
        registry.retirement.undelete("acme", "support", by=BY)
    assert publish("one") == one
    assert is_whole(store, one)
    assert registry.read(REF).version == one


def collect_and_forget(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Garbage is collected, and again a day later, when the marks of the first time are dropped."""
    collect(registry)
    monkeypatch.setattr(garbage, "REMOVED_KEPT_SECONDS", 0.0)
    collect(registry)


def test_rolling_back_to_what_was_collected_long_ago_moves_nothing(
    registry: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = publish("one"), publish("two")
    registry.retirement.retire_version("acme", "support", one)
    collect_and_forget(registry, monkeypatch)
    with pytest.raises(Conflict, match="were removed"):
        registry.aliases.roll_back("acme", "support", by=BY)
    assert registry.read(REF).version == two


def test_an_adapter_that_was_collected_long_ago_is_not_undeleted(
    registry: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish("one")
    registry.retirement.retire("acme", "support", by=BY)
    collect_and_forget(registry, monkeypatch)
    with pytest.raises(Conflict, match="were removed"):
        registry.retirement.undelete("acme", "support", by=BY)
    with pytest.raises(NotFound):
        registry.describe("acme", "support")
    assert [move.why for move in registry.aliases.history("acme", "support")] == ["retire", "publish"]


def test_files_of_a_dead_upload_are_collected_when_they_are_old(store: ObjectStore, registry: Registry, publish: Publish) -> None:
    publish("one")
    store.put(file_key("acme", "support", "a" * 64, "adapter_config.json"), b"{}")
    store.put(file_key("acme", "other", "b" * 64, "adapter_config.json"), b"{}")  # no pointers at all
    assert collect(registry, NEVER) == []
    assert [(found.name, found.version, found.why) for found in collect(registry)] == [
        ("other", "b" * 64, "unfinished"),
        ("support", "a" * 64, "unfinished"),
    ]
    assert store.list("adapters/acme/other/versions/").objects == ()


def test_a_publish_that_died_before_its_pointer_is_collected(store: ObjectStore, registry: Registry, publish: Publish) -> None:
    publish("one")
    dying = FaultyStore(store)

    def die(key: str, data: bytes) -> None:
        if key.endswith("aliases.json") and b'"uploading": {}' in data:
            raise KeyboardInterrupt

    dying.on_put = die
    with pytest.raises(KeyboardInterrupt):
        publish("two", Registry(dying))
    assert collect(registry, NEVER) == []
    (found,) = collect(registry)
    assert (found.why, found.files, found.removed) == ("unfinished", 3, True)


def test_what_is_published_while_garbage_is_collected_is_whole(store: ObjectStore, registry: Registry, publish: Publish) -> None:
    """The collector sees the version as garbage, then somebody publishes the same content, then the collector goes on."""
    one = publish("one")
    publish("two")
    registry.retirement.retire_version("acme", "support", one)
    slow = FaultyStore(store)

    def publish_first(key: str, data: bytes) -> None:
        slow.on_put = lambda key, data: None
        publish("one", Registry(store))

    slow.on_put = publish_first
    assert [found.removed for found in collect(Registry(slow))] == [False]
    assert is_whole(store, one)
    assert registry.read(REF).version == one


def test_what_is_published_in_the_middle_of_a_removal_is_refused_and_whole_afterwards(store: ObjectStore, publish: Publish) -> None:
    one = publish("one")
    publish("two")
    Registry(store).retirement.retire_version("acme", "support", one)
    slow = DeletingStore(store, lambda: publish("one", Registry(store)))
    assert [found.removed for found in collect(Registry(slow))] == [True]
    assert isinstance(slow.outcome, Unavailable)
    assert publish("one") == one
    assert is_whole(store, one)


def test_a_publish_that_saw_the_version_whole_before_it_was_collected_uploads_it_again(store: ObjectStore, publish: Publish) -> None:
    one = publish("one")
    publish("two")
    Registry(store).retirement.retire_version("acme", "support", one)
    slow = FaultyStore(store)

    def collect_first(key: str, data: bytes) -> None:
        slow.on_put = lambda key, data: None
        collect(Registry(store))

    slow.on_put = collect_first  # its first put is the pointers': it found the version there
    assert publish("one", Registry(slow)) == one
    assert is_whole(store, one)


def test_an_upload_that_is_under_way_is_not_collected(store: ObjectStore, publish: Publish) -> None:
    publish("one")
    slow = FaultyStore(store)
    found: list[GarbageFound] = []

    def look(key: str, data: bytes) -> None:
        if key.endswith("manifest.json"):
            found.extend(collect(Registry(store), GarbageRules(0.0)))

    slow.on_put = look
    two = publish("two", Registry(slow))
    assert found == []
    assert is_whole(store, two)


def test_a_removal_that_died_is_ended_by_the_next_run(store: ObjectStore, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    one = publish("one")
    publish("two")
    Registry(store).retirement.retire_version("acme", "support", one)

    def die() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(Registry(DeletingStore(store, die)))
    assert store.head(manifest_key("acme", "support", one)) is None
    assert store.list(f"adapters/acme/support/versions/{one}").objects != ()
    assert collect(Registry(store)) == [], "it may still be running"
    monkeypatch.setattr(garbage, "REMOVAL_SECONDS", 0.0)
    monkeypatch.setattr(garbage.time, "monotonic", lambda: 0.0)
    assert [found.removed for found in collect(Registry(store))] == [True]
    assert store.list(f"adapters/acme/support/versions/{one}").objects == ()


def test_collecting_makes_the_listings_anew(store: ObjectStore, registry: Registry, publish: Publish) -> None:
    publish("one")
    keys = [info.key for info in store.list("index").objects]
    for key in keys:
        store.delete(key)
    assert registry.list_adapters().items == ()
    collect(registry, NEVER)
    assert [info.key for info in store.list("index").objects] == keys


def test_scratch_of_killed_processes_is_found_by_age(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for made in (old, new):
        made.mkdir()
        (made / "part").write_bytes(b"x" * 10)
    for path in (old / "part", old):
        os.utime(path, (time.time() - 100, time.time() - 100))
    (found,) = leftovers((tmp_path, tmp_path / "absent"), older_than_seconds=50)
    assert (found.path, found.size_bytes) == (old, 10)
    remove(found)
    assert list(tmp_path.iterdir()) == [new]


class DeletingStore(FaultyStore):
    """Calls `between` after the first object was deleted; keeps what it raised, if an error of ours."""

    def __init__(self, store: ObjectStore, between: Callable[[], object]) -> None:
        super().__init__(store)
        self._between = between
        self.outcome: Exception | None = None

    def delete(self, key: str) -> None:
        self._store.delete(key)
        between, self._between = self._between, lambda: None
        try:
            between()
        except Exception as error:
            self.outcome = error
