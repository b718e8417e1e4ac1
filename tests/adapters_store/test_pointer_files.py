"""The manifests of what is served lie in aliases.json: of a version only while it is served, and never another's."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from adapters_store.adapter import Adapter
from adapters_store.canary import Guard
from adapters_store.errors import StoreUnavailable
from adapters_store.garbage import GarbageRules
from adapters_store.history import Actor
from adapters_store.layout import aliases_key, manifest_key
from adapters_store.names import ModelRef
from adapters_store.objects import ObjectStore
from adapters_store.registry import Registry
from adapters_store.validate import Fit
from tests.adapters_store.adapters import write_opaque
from tests.adapters_store.faults import FaultyStore

BY = Actor("key1")
REF = ModelRef.parse("acme/support")


@pytest.fixture
def registry(store: ObjectStore) -> Registry:
    return Registry(store)


@pytest.fixture
def publish(registry: Registry, tmp_path: Path):
    def call(content: str, base: str = "base", alias: str | None = "production") -> Adapter:
        return registry.publish(write_opaque(tmp_path, content), "acme", "support", Fit(base, 4), created_by=BY, alias=alias).adapter

    return call


def kept(store: ObjectStore) -> dict[str, Any]:
    return json.loads(store.get(aliases_key("acme", "support"))[0])["manifests"]


def rewrite(store: ObjectStore, **fields: Any) -> None:
    data, etag = store.get(aliases_key("acme", "support"))
    store.put(aliases_key("acme", "support"), json.dumps({**json.loads(data), **fields}).encode(), if_match=etag)


def test_cold_name_costs_a_listing_and_one_read(store: ObjectStore, publish) -> None:
    adapter = publish("one")
    counting = FaultyStore(store)
    assert Registry(counting).read(REF) == adapter
    assert counting.calls == {"list": 1, "get": 1}


def test_what_is_served_is_kept_and_nothing_else(store: ObjectStore, registry: Registry, publish) -> None:
    one, two, three = publish("one"), publish("two", alias=None), publish("three", alias="staging")
    assert kept(store).keys() == {one.version, three.version}
    registry.canaries.start("acme", "support", "production", two.version, weight=50, guard=Guard(), by=BY)
    assert kept(store).keys() == {one.version, three.version}, "whether a canary's files are there is asked"
    registry.canaries.promote("acme", "support", "production", by=BY)
    assert kept(store).keys() == {two.version, three.version}
    registry.retirement.retire_version("acme", "support", three.version)
    assert kept(store).keys() == {two.version}
    registry.retirement.undelete_version("acme", "support", three.version)
    assert kept(store).keys() == {two.version, three.version}
    registry.retirement.retire("acme", "support", by=BY)
    assert kept(store) == {}


def test_version_that_comes_again_for_another_base_is_that_ones(store: ObjectStore, registry: Registry, publish) -> None:
    """A manifest never changes while its version is there. This one went, and another came under the same digest."""
    old = publish("one", base="small")
    publish("two")
    registry.retirement.retire_version("acme", "support", old.version)
    list(registry.garbage.collect(GarbageRules(0.0, 0.0), remove=True))
    new = publish("one", base="large")
    assert new.version == old.version
    assert {Registry(store).read(REF).base, registry.read(REF).base} == {"large"}
    assert kept(store)[new.version]["base"] == "large"


def test_change_of_something_else_asks_the_store_for_no_manifest(store: ObjectStore, publish) -> None:
    one, two = publish("one"), publish("two", alias="staging")
    registry = Registry(store)
    registry.read(REF)
    store.delete(manifest_key("acme", "support", one.version))  # so that it would show
    registry.aliases.delete("acme", "support", "staging", by=BY)
    assert kept(store).keys() == {one.version}
    assert two.version not in kept(store)


def test_aliases_from_before_there_were_manifests_are_served_and_get_those_of_what_comes(
    store: ObjectStore, registry: Registry, publish
) -> None:
    one, two = publish("one"), publish("two", alias=None)
    rewrite(store, manifests={})
    assert Registry(store).read(REF) == one
    registry.aliases.move("acme", "support", "staging", two.version, by=BY)
    assert kept(store).keys() == {two.version}


@pytest.mark.parametrize("damage", [{"files": []}, {"base": None, "files": 3}, "nothing"])
def test_damaged_entry_is_not_believed_and_does_not_stay(store: ObjectStore, registry: Registry, publish, damage: Any) -> None:
    one, two = publish("one"), publish("two", alias=None)
    rewrite(store, manifests={one.version: {**kept(store)[one.version], **damage} if isinstance(damage, dict) else damage})
    assert Registry(store).read(REF) == one
    registry.aliases.move("acme", "support", "staging", two.version, by=BY)
    assert kept(store).keys() == {two.version}


def test_store_that_does_not_tell_a_manifest_keeps_nobody_from_changing_the_name(store: ObjectStore, publish) -> None:
    one = publish("one")
    registry = Registry(store)
    registry.retirement.retire("acme", "support", by=BY)
    get = registry._versions.get_now
    calls = []

    def fail_at_last(owner: str, name: str, version: str) -> Adapter | None:
        calls.append(version)
        if len(calls) > 1:  # the first look is undelete's own
            raise StoreUnavailable("the object store did not answer (test)")
        return get(owner, name, version)

    registry._versions.get_now = fail_at_last  # type: ignore[method-assign]
    registry.retirement.undelete("acme", "support", by=BY)
    assert kept(store) == {}
    assert Registry(store).read(REF) == one


def test_entry_of_what_is_no_longer_served_counts_for_nothing(store: ObjectStore, publish) -> None:
    one = publish("one")
    left = kept(store)[one.version]
    publish("two")
    rewrite(store, manifests={**kept(store), one.version: {**left, "base": "another"}}, retired={one.version: time.time()})
    registry = Registry(store)
    registry.read(REF)
    assert registry._versions.get("acme", "support", one.version).base == "base"
