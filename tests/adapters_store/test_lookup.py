"""aliases.json is read beside the listing of a name that was not read before, and is never believed over it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from adapters_store.errors import NotFound, StoreUnavailable
from adapters_store.history import Actor
from adapters_store.layout import ALIASES_FILE
from adapters_store.lookup import AHEAD_AT_ONCE
from adapters_store.names import ModelRef
from adapters_store.objects import ObjectPage, ObjectStore
from adapters_store.registry import Registry
from adapters_store.validate import Fit
from tests.adapters_store.adapters import write_opaque

BY = Actor("key1")
REF = ModelRef.parse("acme/support")
BOUND_SECONDS = 20.0


class Watched:
    """Passes calls on to a real store, and tells tests when aliases.json is read; `before_list` runs first in each listing."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.asked = threading.Event()
        self.told = threading.Event()
        self.reads = 0
        self.before_list = lambda: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def list(self, prefix: str, **how: Any) -> ObjectPage:
        self.before_list()
        return self._store.list(prefix, **how)

    def get(self, key: str) -> tuple[bytes, str]:
        if not key.endswith(f"/{ALIASES_FILE}"):
            return self._store.get(key)
        self.reads += 1
        self.asked.set()
        try:
            return self._store.get(key)
        finally:
            self.told.set()


@pytest.fixture
def publish(store: ObjectStore, tmp_path: Path):
    def call(content: str) -> str:
        return Registry(store).publish(write_opaque(tmp_path, content), "acme", "support", Fit("base", 4), created_by=BY).adapter.version

    return call


def test_new_name_is_listed_and_read_at_once(store: ObjectStore, publish) -> None:
    version = publish("one")
    watched = Watched(store)
    watched.before_list = lambda: _must(watched.asked.wait(BOUND_SECONDS))  # the listing does not answer before aliases.json is asked for
    assert Registry(watched).read(REF).version == version
    assert watched.reads == 1


def test_what_was_read_before_the_listing_does_not_count_when_the_listing_names_another(store: ObjectStore, publish) -> None:
    publish("one")
    watched = Watched(store)
    newer: list[str] = []

    def move_in_between() -> None:
        _must(watched.told.wait(BOUND_SECONDS))
        newer.append(publish("two"))

    watched.before_list = move_in_between
    assert Registry(watched).read(REF).version == newer[0]
    assert watched.reads == 2


def test_known_name_is_listed_alone(store: ObjectStore, publish) -> None:
    publish("one")
    watched = Watched(store)
    registry = Registry(watched)
    registry.read(REF)
    reads = watched.reads
    registry.read(REF)
    assert watched.reads == reads


def test_name_of_which_there_is_nothing_is_asked_for_ahead_once(store: ObjectStore, publish) -> None:
    watched = Watched(store)
    registry = Registry(watched)
    watched.before_list = lambda: _must(watched.told.wait(BOUND_SECONDS))
    for _ in range(3):
        with pytest.raises(NotFound, match="acme/support"):
            registry.read(REF)
    assert watched.reads == 1
    version = publish("one")
    assert registry.read(REF).version == version


def test_listing_that_fails_leaves_no_read_behind(store: ObjectStore) -> None:
    """Else a store that hangs would be asked, when it is back, for all that nobody waits for any more."""
    hanging = threading.Event()
    watched = Watched(store)
    registry = Registry(watched)
    held = [registry._lookup._ahead.submit(hanging.wait, BOUND_SECONDS) for _ in range(AHEAD_AT_ONCE)]

    def fail() -> None:
        raise StoreUnavailable("the object store did not answer (test)")

    watched.before_list = fail
    with pytest.raises(StoreUnavailable):
        registry.read(REF)
    hanging.set()
    assert all(future.result() for future in held)
    registry._lookup._ahead.shutdown()
    assert watched.reads == 0


def test_names_of_which_there_is_nothing_do_not_push_out_those_that_are_served(store: ObjectStore, publish) -> None:
    publish("one")
    watched = Watched(store)
    registry = Registry(watched)
    registry.read(REF)
    for number in range(3):
        with pytest.raises(NotFound):
            registry.read(ModelRef.parse(f"acme/nothing-{number}"))
    assert len(registry._pointer_files._known) == 1
    reads = watched.reads
    registry.read(REF)
    assert watched.reads == reads


def _must(happened: bool) -> None:
    assert happened
