"""Finding what waits to be tried, whatever else lies among the markers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters_store import admissions
from adapters_store.adapter import Adapter, version_of
from adapters_store.errors import StoreUnavailable
from adapters_store.history import Actor
from adapters_store.layout import aliases_key, pending_key
from adapters_store.names import ModelRef
from adapters_store.objects import ObjectStore
from adapters_store.registry import Registry
from adapters_store.validate import Fit
from adapters_store.versions import hash_files
from tests.adapters_store.faults import FaultyStore

BY = Actor("key1", "ann", "acme")

Publish = Callable[[str], str]


@pytest.fixture
def registry(store: ObjectStore) -> Registry:
    return Registry(store, tries=True)


@pytest.fixture
def publish(registry: Registry, tmp_path: Path) -> Publish:
    """Publishes acme/<name>, which waits then; its version."""

    def call(name: str) -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_text(name)
        return registry.publish(folder, "acme", name, Fit("base", 4), created_by=BY).adapter.version

    return call


def test_what_cannot_be_read_keeps_nothing_else_from_being_found(
    store: ObjectStore, registry: Registry, publish: Publish, caplog: pytest.LogCaptureFixture
) -> None:
    publish("damaged")
    good = publish("good")
    store.put(aliases_key("acme", "damaged"), b"{")
    for stray in ("pending/README", "pending/acme/a/b/c", "pending/-/-/-"):
        store.put(stray, b"")
    for _ in range(2):
        found, after = registry.admissions.waiting()
        assert ([adapter.version for adapter in found], after) == ([good], None)
    told = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.message for record in told] == ["pending_marker_ignored"] * 4, "each is told once"


def test_what_lies_beyond_one_look_is_found_by_the_next(registry: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admissions, "LOOKED_AT", 2)
    versions = [publish(name) for name in ("a", "b", "c")]
    first, after = registry.admissions.waiting()
    second, end = registry.admissions.waiting(after)
    assert ([adapter.version for adapter in (*first, *second)], end) == (versions, None)


def test_a_store_that_is_away_ends_the_look(local_store: ObjectStore, tmp_path: Path) -> None:
    local_store.put(pending_key("acme", "support", "0" * 64), b"")
    faulty = FaultyStore(local_store)
    registry = Registry(faulty, tries=True)
    faulty.down = True
    with pytest.raises(StoreUnavailable):
        registry.admissions.waiting()


def test_an_admission_that_died_before_the_listing_is_ended_by_the_next_look(
    store: ObjectStore, registry: Registry, publish: Publish
) -> None:
    version = publish("support")
    dying = FaultyStore(store)

    def die(key: str, data: bytes) -> None:
        if key.startswith("index"):
            raise KeyboardInterrupt

    dying.on_put = die
    ((adapter,), _) = registry.admissions.waiting()
    with pytest.raises(KeyboardInterrupt):
        Registry(dying, tries=True).admissions.admit(adapter)
    assert registry.read(ModelRef.parse("acme/support")).version == version
    assert registry.list_adapters().items == ()
    assert registry.admissions.waiting() == ([], None)
    assert [item.version for item in registry.list_adapters().items] == [version]
    assert store.list("pending/").objects == ()


@pytest.mark.parametrize("found", ["refused", "rejected", "pending"])
def test_what_is_published_untried_is_served_whatever_was_found_of_it_before(local_store: ObjectStore, tmp_path: Path, found: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_text("weights")
    trying, plain = Registry(local_store, tries=True), Registry(local_store)

    def publish(through: Registry) -> Adapter:
        return through.publish(folder, "acme", "support", Fit("base", 4), created_by=BY).adapter

    if found == "refused":
        plain.admissions.refuse("acme", "support", version_of(hash_files(folder)), ["its rank is too high here."], by=BY)
    else:
        adapter = publish(trying)
        if found == "rejected":
            trying.admissions.reject(adapter, ["it failed."])
    published = publish(plain)
    assert plain.read(ModelRef.parse("acme/support")) == published
