"""A PEFT folder copied straight into the bucket is served, over both stores."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapters_store.adoption import AdoptionRules
from adapters_store.errors import InvalidAdapter, NotFound, Unavailable
from adapters_store.history import Actor
from adapters_store.names import ModelRef
from adapters_store.objects import ObjectStore
from adapters_store.registry import Registry
from adapters_store.validate import Fit
from tests.adapters_store.faults import FaultyStore

REF = ModelRef.parse("acme/support")
PREFIX = "adapters/acme/support/"


class Inspector:
    """Takes what does not say "bad", and counts how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, folder: Path) -> Fit:
        self.calls += 1
        if b"bad" in (folder / "adapter_model.safetensors").read_bytes():
            raise InvalidAdapter(["it is bad.", "it is worse."])
        return Fit(base="smollm2-135m", rank=4)


@pytest.fixture
def inspector() -> Inspector:
    return Inspector()


@pytest.fixture
def registry(store: ObjectStore, inspector: Inspector) -> Registry:
    return Registry(store, adoption=AdoptionRules(inspector, max_bytes=1000))


def copy(store: ObjectStore, weights: bytes) -> None:
    """What `aws s3 cp --recursive` does."""
    store.put(f"{PREFIX}README.md", b"not ours")
    store.put(f"{PREFIX}adapter_config.json", b"{}")
    store.put(f"{PREFIX}adapter_model.safetensors", weights)


def test_copied_folder_is_adopted_when_first_asked_for(store: ObjectStore, registry: Registry, inspector: Inspector) -> None:
    copy(store, b"one")
    adapter = registry.read(REF)
    assert (adapter.base, adapter.rank, adapter.created_by) == ("smollm2-135m", 4, "adopted")
    assert [file.name for file in adapter.files] == ["adapter_config.json", "adapter_model.safetensors"]
    assert registry.read(REF) == adapter
    assert inspector.calls == 1
    assert [item.name for item in registry.list_adapters().items] == ["support"]
    assert Registry(store).read(ModelRef.parse(adapter.exact_name)) == adapter


def test_folder_copied_over_is_adopted_again(store: ObjectStore, registry: Registry) -> None:
    copy(store, b"one")
    one = registry.read(REF)
    copy(store, b"two")
    two = registry.read(REF)
    assert two.version != one.version
    assert {adapter.version for adapter in registry.describe("acme", "support").versions} == {one.version, two.version}


def test_rollback_outlives_the_adopted_files(store: ObjectStore, registry: Registry) -> None:
    copy(store, b"one")
    one = registry.read(REF)
    copy(store, b"two")
    registry.read(REF)
    registry.aliases.move("acme", "support", "production", one.version, by=Actor("k"))
    assert registry.read(REF) == one
    copy(store, b"two")  # the same content, on a folder store with new etags
    assert registry.read(REF) == one


def test_publish_takes_the_name_over_from_copied_files(store: ObjectStore, registry: Registry, tmp_path: Path) -> None:
    copy(store, b"one")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "adapter_model.safetensors").write_bytes(b"published")
    published = registry.publish(tmp_path / "folder", "acme", "support", Fit("smollm2-135m", 4), created_by=Actor("key1"))
    assert registry.read(REF) == published.adapter
    copy(store, b"two")
    assert registry.read(REF) != published.adapter


def test_half_copied_folder_is_not_found_and_says_what_is_missing(store: ObjectStore, registry: Registry) -> None:
    store.put(f"{PREFIX}adapter_config.json", b"{}")
    with pytest.raises(NotFound, match=r"adapter_model\.safetensors has not been copied"):
        registry.read(REF)


def test_refused_folder_says_why_each_time_and_is_judged_once(store: ObjectStore, registry: Registry, inspector: Inspector) -> None:
    copy(store, b"bad")
    for _ in range(3):
        with pytest.raises(InvalidAdapter) as error:
            registry.read(REF)
        assert error.value.reasons == ("it is bad.", "it is worse.")
    assert inspector.calls == 1
    copy(store, b"good")
    assert registry.read(REF).created_by == "adopted"


def test_broken_copy_does_not_take_down_what_is_served(store: ObjectStore, registry: Registry) -> None:
    copy(store, b"one")
    one = registry.read(REF)
    copy(store, b"bad")
    assert registry.read(REF) == one


def test_copied_folder_above_the_limit_is_refused_unread(store: ObjectStore, registry: Registry, inspector: Inspector) -> None:
    copy(store, b"x" * 1000)
    with pytest.raises(InvalidAdapter, match="1002 bytes, at most 1000"):
        registry.read(REF)
    assert inspector.calls == 0


def test_folder_that_changes_while_it_is_read_is_read_again(store: ObjectStore) -> None:
    def inspect_while_copying(folder: Path) -> Fit:
        if (folder / "adapter_model.safetensors").read_bytes() == b"one":
            copy(store, b"two")
        return Fit("smollm2-135m", 4)

    copy(store, b"one")
    adapter = Registry(store, adoption=AdoptionRules(inspect_while_copying)).read(REF)
    copy(store, b"other")
    store.delete(f"{PREFIX}adapter_config.json")
    assert Registry(store).read(REF) == adapter
    detail = Registry(store).describe("acme", "support")
    assert detail.aliases["production"] == adapter.version
    assert store.get(f"{PREFIX}versions/{adapter.version}/adapter_model.safetensors")[0] == b"two"


def test_download_that_was_copied_over_is_not_judged(store: ObjectStore, inspector: Inspector) -> None:
    faulty = FaultyStore(store)

    def copy_over(key: str, path: Path) -> None:
        if path.read_bytes() == b"bad":
            copy(store, b"good")

    faulty.on_download = copy_over
    copy(store, b"bad")
    assert Registry(faulty, adoption=AdoptionRules(inspector)).read(REF).created_by == "adopted"
    assert inspector.calls == 1


def test_slow_adoption_never_points_back_from_a_newer_one(store: ObjectStore, registry: Registry) -> None:
    pointed: list[str] = []

    def inspect_slowly(folder: Path) -> Fit:
        if (folder / "adapter_model.safetensors").read_bytes() == b"one":
            copy(store, b"two")
            registry.read(REF)  # another gateway adopts the newer files meanwhile
            slow.on_put = lambda key, data: pointed.append(json.loads(data)["aliases"]["production"]) if "aliases" in key else None
        return Fit("smollm2-135m", 4)

    slow = FaultyStore(store)
    copy(store, b"one")
    two = Registry(slow, adoption=AdoptionRules(inspect_slowly)).read(REF)
    assert set(pointed) <= {two.version}


def test_folder_that_never_rests_is_unavailable_for_now(store: ObjectStore) -> None:
    contents = iter(range(100))

    def inspect(folder: Path) -> Fit:
        copy(store, b"%d" % next(contents))
        return Fit("smollm2-135m", 4)

    copy(store, b"start")
    with pytest.raises(Unavailable, match="being copied"):
        Registry(store, adoption=AdoptionRules(inspect)).read(REF)


def test_several_gateways_adopt_one_version(store: ObjectStore, inspector: Inspector) -> None:
    copy(store, b"one")
    gate = threading.Barrier(6)

    def read(_: int) -> str:
        gate.wait(timeout=10)
        return Registry(store, adoption=AdoptionRules(inspector)).read(REF).version

    with ThreadPoolExecutor(6) as pool:
        versions = set(pool.map(read, range(6)))
    assert len(versions) == 1
    assert [adapter.version for adapter in Registry(store).describe("acme", "support").versions] == list(versions)


def test_retired_copied_folder_stays_retired_until_it_is_copied_again(store: ObjectStore, registry: Registry) -> None:
    copy(store, b"one")
    registry.read(REF)
    registry.retirement.retire("acme", "support", by=Actor("k"))
    with pytest.raises(NotFound):
        registry.read(REF)
    copy(store, b"two")
    assert registry.read(REF).created_by == "adopted"
