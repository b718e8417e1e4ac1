"""Publishing, reading, moving and retiring, over both stores."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters_store.adapter import AdapterFile, version_of
from adapters_store.errors import Conflict, InvalidName, InvalidRequest, NotFound
from adapters_store.history import Actor
from adapters_store.index import Listing
from adapters_store.layout import file_key
from adapters_store.local import LocalStore
from adapters_store.names import ModelRef
from adapters_store.objects import ObjectStore
from adapters_store.registry import Published, Registry
from adapters_store.validate import Fit
from tests.adapters_store.faults import FaultyStore

BY = Actor("k", "laptop", "acme")
FIT = Fit(base="smollm2-135m", rank=4)


@pytest.fixture
def registry(store: ObjectStore) -> Registry:
    return Registry(store)


@pytest.fixture
def folder(tmp_path: Path):
    """A maker of adapter folders by content."""

    def make(content: str) -> Path:
        path = tmp_path / f"folder-{content}"
        path.mkdir(exist_ok=True)
        (path / "adapter_config.json").write_text("{}")
        (path / "adapter_model.safetensors").write_text(content)
        return path

    return make


@pytest.fixture
def publish(registry: Registry, folder):
    def call(content: str, name: str = "support", alias: str | None = "production", fit: Fit = FIT) -> Published:
        return registry.publish(folder(content), "acme", name, fit, created_by=Actor("key1"), alias=alias)

    return call


def ref(text: str) -> ModelRef:
    return ModelRef.parse(text)


def test_published_adapter_is_read_by_alias_version_and_prefix(registry: Registry, publish) -> None:
    adapter = publish("one").adapter
    assert registry.read(ref("acme/support")) == adapter
    assert registry.read(ref("acme/support:production")) == adapter
    assert registry.read(ref(adapter.exact_name)) == adapter
    assert registry.read(ref(f"acme/support@{adapter.version[:8]}")) == adapter
    assert (adapter.base, adapter.rank, adapter.created_by) == ("smollm2-135m", 4, "key1")
    assert [file.name for file in adapter.files] == ["adapter_config.json", "adapter_model.safetensors"]


def test_another_process_reads_what_was_published(store: ObjectStore, publish) -> None:
    adapter = publish("one").adapter
    assert Registry(store).read(ref("acme/support")) == adapter


def test_same_content_is_the_same_version_and_is_not_uploaded_again(store: ObjectStore, registry: Registry, publish) -> None:
    first = publish("one")
    before = store.list("adapters/").objects
    second = publish("one")
    assert (first.created, first.alias_moved) == (True, True)
    assert (second.created, second.alias_moved, second.adapter) == (False, False, first.adapter)
    assert store.list("adapters/").objects == before


def test_next_publish_moves_production_and_leaves_other_aliases(registry: Registry, publish) -> None:
    one = publish("one").adapter
    registry.aliases.move("acme", "support", "stable", one.version[:8], by=BY)
    two = publish("two").adapter
    assert registry.read(ref("acme/support")) == two
    assert registry.read(ref("acme/support:stable")) == one
    assert publish("one").alias_moved is True
    assert registry.read(ref("acme/support")) == one


def test_publish_without_an_alias_moves_nothing(registry: Registry, publish) -> None:
    one = publish("one").adapter
    two = publish("two", alias=None).adapter
    assert registry.read(ref("acme/support")) == one
    assert registry.read(ref(two.exact_name)) == two


def test_unknown_names_are_not_found_and_say_where_to_look(registry: Registry, publish) -> None:
    with pytest.raises(NotFound, match=r"acme/support.*GET /api/v1/models") as error:
        registry.read(ref("acme/support"))
    assert error.value.param == "model"
    publish("one")
    with pytest.raises(NotFound, match="no alias 'staging': it has production"):
        registry.read(ref("acme/support:staging"))
    with pytest.raises(NotFound, match="0000000000"):
        registry.read(ref("acme/support@0000000000"))


def test_files_without_a_manifest_are_no_version(store: ObjectStore, registry: Registry, publish, folder) -> None:
    version = publish("one", name="other").adapter.version
    store.put(file_key("acme", "support", version, "adapter_config.json"), b"{}")  # what a crash in an upload leaves
    for name in ("acme/support", f"acme/support@{version[:8]}", f"acme/support@{version}"):
        with pytest.raises(NotFound):
            registry.read(ref(name))
    with pytest.raises(NotFound):
        registry.describe("acme", "support")
    assert publish("one").created is True
    assert registry.read(ref("acme/support")).version == version


def test_prefix_that_means_several_versions_is_refused(registry: Registry, publish) -> None:
    one, two = publish("2121").adapter, publish("19006").adapter  # found by trying: their versions share 8 digits
    assert one.version[:8] == two.version[:8]
    with pytest.raises(InvalidName, match="more than one version"):
        registry.read(ref(f"acme/support@{one.version[:8]}"))
    assert registry.read(ref(f"acme/support@{one.version[:12]}")) == one


def test_move_alias_honours_if_match(registry: Registry, publish) -> None:
    one, _ = publish("one").adapter, publish("two").adapter
    etag = registry.describe("acme", "support").etag
    _, moved = registry.aliases.move("acme", "support", "production", one.version, if_match=etag, by=BY)
    assert registry.read(ref("acme/support")) == one
    assert registry.describe("acme", "support").etag == moved != etag
    with pytest.raises(Conflict):
        registry.aliases.move("acme", "support", "staging", one.version, if_match=etag, by=BY)
    with pytest.raises(NotFound):
        registry.aliases.move("acme", "support", "staging", "0" * 64, by=BY)


def test_deleted_alias_is_unknown(registry: Registry, publish) -> None:
    version = publish("one").adapter.version
    registry.aliases.move("acme", "support", "staging", version, by=BY)
    registry.aliases.delete("acme", "support", "staging", by=BY)
    with pytest.raises(NotFound):
        registry.read(ref("acme/support:staging"))
    with pytest.raises(NotFound):
        registry.aliases.delete("acme", "support", "staging", by=BY)
    assert registry.describe("acme", "support").aliases == {"production": version}


def test_retired_version_is_unknown_by_every_name_until_published_again(registry: Registry, publish) -> None:
    one = publish("one").adapter
    registry.aliases.move("acme", "support", "old", one.version, by=BY)
    two = publish("two").adapter
    registry.retirement.retire_version("acme", "support", one.version[:12])
    for name in (one.exact_name, "acme/support:old"):
        with pytest.raises(NotFound, match="retired"):
            registry.read(ref(name))
    with pytest.raises(NotFound):
        registry.aliases.move("acme", "support", "production", one.version, by=BY)
    assert registry.describe("acme", "support").versions == (two,)
    publish("one", alias=None)
    assert registry.read(ref(one.exact_name)) == one


def test_retiring_what_production_serves_is_refused(registry: Registry, publish) -> None:
    version = publish("one").adapter.version
    with pytest.raises(Conflict, match="move that alias"):
        registry.retirement.retire_version("acme", "support", version)
    assert registry.read(ref("acme/support")).version == version


def test_retired_adapter_is_gone_from_names_and_listings_and_can_begin_anew(registry: Registry, publish) -> None:
    one = publish("one").adapter
    publish("two")
    registry.retirement.retire("acme", "support", by=BY)
    for name in ("acme/support", one.exact_name):
        with pytest.raises(NotFound):
            registry.read(ref(name))
    with pytest.raises(NotFound):
        registry.describe("acme", "support")
    assert registry.list_adapters().items == ()
    publish("one")
    assert registry.read(ref("acme/support")) == one
    assert registry.describe("acme", "support").versions == (one,)


def test_same_content_for_another_base_is_a_conflict(publish) -> None:
    publish("one")
    with pytest.raises(Conflict, match="smollm2-135m"):
        publish("one", fit=Fit(base="other", rank=4))


def test_folder_with_a_file_named_like_ours_is_refused(registry: Registry, folder) -> None:
    path = folder("one")
    (path / "manifest.json").write_text("{}")
    with pytest.raises(InvalidRequest, match=r"manifest\.json"):
        registry.publish(path, "acme", "support", FIT, created_by=Actor("key1"))


def test_concurrent_publishes_of_one_content_make_one_version(store: ObjectStore, folder) -> None:
    path = folder("one")
    results = _together([lambda: Registry(store).publish(path, "acme", "support", FIT, created_by=BY)] * 6)
    assert sum(published.created for published in results) == 1
    assert len({published.adapter.version for published in results}) == 1
    assert Registry(store).read(ref("acme/support")) == results[0].adapter


def test_concurrent_publishes_of_different_contents_all_survive(store: ObjectStore, folder) -> None:
    paths = [folder(str(number)) for number in range(6)]
    calls = [lambda path=path: Registry(store).publish(path, "acme", "support", FIT, created_by=BY, alias=path.name) for path in paths]
    results = _together(calls)
    detail = Registry(store).describe("acme", "support")
    assert {adapter.version for adapter in detail.versions} == {published.adapter.version for published in results}
    assert detail.aliases == {path.name: published.adapter.version for path, published in zip(paths, results, strict=True)}


def test_listing_is_right_after_racing_publishes(store: ObjectStore, folder) -> None:
    paths = [folder(str(number)) for number in range(6)]
    _together([lambda path=path: Registry(store).publish(path, "acme", "support", FIT, created_by=BY) for path in paths])
    (item,) = Registry(store).list_adapters().items
    assert item.version == Registry(store).read(ref("acme/support")).version
    assert len(store.list("index/").objects) == 1


def test_listing_is_right_after_a_publish_overtakes_another(store: ObjectStore, folder) -> None:
    one, two = folder("one"), folder("two")
    faulty = FaultyStore(store)

    def overtake(key: str, data: bytes) -> None:
        if key.startswith("index/"):
            faulty.on_put = lambda key, data: None
            Registry(store).publish(two, "acme", "support", FIT, created_by=BY)

    faulty.on_put = overtake
    Registry(faulty).publish(one, "acme", "support", FIT, created_by=BY)
    (item,) = Registry(store).list_adapters().items
    assert item.version == Registry(store).read(ref("acme/support")).version
    assert len(store.list("index/").objects) == 1


def _together(calls) -> list[Published]:
    gate = threading.Barrier(len(calls))

    def run(call) -> Published:
        gate.wait(timeout=10)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def test_listing_is_paged_in_order_and_knows_each_base(registry: Registry, publish) -> None:
    names = ["a", "a-b", "a.b", "b", "b0"]
    for name in names:
        publish("one", name=name)
    publish("two", name="b", fit=Fit(base="org/large", rank=8))
    found, after = [], None
    while True:
        page = registry.list_adapters(start_after=after, limit=2)
        assert len(page.items) <= 2
        found += page.items
        if (after := page.next) is None:
            break
    assert sorted(item.name for item in found) == names
    assert len(found) == len(names)
    assert {item.name: (item.base, item.rank) for item in found}["b"] == ("org/large", 8)
    assert {item.name: item.version for item in found}["b"] == registry.read(ref("acme/b")).version
    assert registry.list_adapters(Listing(owner="acme")).items == tuple(found)
    assert registry.list_adapters(Listing(owner="nobody")).items == ()


def test_listing_costs_two_store_calls(store: ObjectStore, registry: Registry, publish) -> None:
    for name in ("a", "b", "c"):
        publish("one", name=name)
    counting = FaultyStore(store)
    assert len(Registry(counting).list_adapters().items) == 3
    assert counting.calls == {"list": 2}  # private and public


def test_second_read_costs_one_listing(store: ObjectStore, publish) -> None:
    publish("one")
    counting = FaultyStore(store)
    registry = Registry(counting)
    registry.read(ref("acme/support"))
    assert counting.calls == {"list": 1, "get": 1}
    registry.read(ref("acme/support"))
    assert counting.calls == {"list": 2, "get": 1}


def test_first_page_over_many_adapters_is_quick(local_store: LocalStore, tmp_path: Path) -> None:
    for number in range(10_000):  # as `publish` leaves them, without the hour that it would take
        marker = tmp_path / "store" / "index" / "acme" / f"adapter-{number:06d}" / f"base,4,1700000000,{'A' * 43}"
        marker.parent.mkdir(parents=True)
        marker.touch()
    registry = Registry(local_store)
    took = []
    for _ in range(5):  # the quickest counts: the others may have waited for the machine
        started = time.monotonic()
        page = registry.list_adapters(limit=100)
        took.append(time.monotonic() - started)
    assert [item.name for item in page.items] == [f"adapter-{number:06d}" for number in range(100)]
    assert registry.list_adapters(start_after=page.next, limit=1).items[0].name == "adapter-000100"
    assert min(took) < 0.25  # a tenth of the 100,000 that were measured by hand; the rest is for a busy machine


@given(st.lists(st.tuples(st.text(min_size=1), st.integers(0), st.text(alphabet="0123456789abcdef", min_size=64, max_size=64)), max_size=5))
def test_version_depends_on_every_file_and_not_on_their_order(rows) -> None:
    files = [AdapterFile(*row) for row in rows]
    assert version_of(files) == version_of(reversed(files))
    assert version_of([*files, AdapterFile("more", 0, "0" * 64)]) != version_of(files)
