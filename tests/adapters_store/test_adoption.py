"""A PEFT folder copied straight into the bucket is served, over both stores."""

from __future__ import annotations

import errno
import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapters_store import lookup
from adapters_store.adoption import AdoptionRules
from adapters_store.disk import KEPT_FREE_BYTES
from adapters_store.errors import Conflict, InvalidAdapter, NotFound, StoreUnavailable, Unavailable
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


def test_a_scratch_folder_that_is_not_there_is_made(store: ObjectStore, inspector: Inspector, tmp_path: Path) -> None:
    copy(store, b"one")
    rules = AdoptionRules(inspector, scratch=tmp_path / "fresh" / "uploads")
    assert Registry(store, adoption=rules).read(REF).created_by == "adopted"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "full"),
        OSError("broken"),
        StoreUnavailable("away"),
        Conflict("for another base"),
        RuntimeError("a bug"),
    ],
)
def test_an_adoption_that_fails_does_not_take_down_what_is_served(local_store: ObjectStore, error: Exception) -> None:
    copy(local_store, b"one")
    one = Registry(local_store, adoption=AdoptionRules(lambda _: Fit("smollm2-135m", 4))).read(REF)
    tries = 0

    def fail(folder: Path) -> Fit:
        nonlocal tries
        tries += 1
        raise error

    copy(local_store, b"two")
    failing = Registry(local_store, adoption=AdoptionRules(fail))
    assert failing.read(REF) == one and failing.read(REF) == one
    assert tries == 1, "each try downloads the folder: not at each request"


def test_a_failed_adoption_is_tried_again_after_a_while(local_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    copy(local_store, b"one")
    faults = [None, StoreUnavailable("away"), None]

    def inspect(folder: Path) -> Fit:
        if (fault := faults.pop(0)) is not None:
            raise fault
        return Fit("smollm2-135m", 4)

    registry = Registry(local_store, adoption=AdoptionRules(inspect))
    one = registry.read(REF)
    copy(local_store, b"two")
    assert registry.read(REF) == one
    monkeypatch.setattr(lookup, "RETRY_SECONDS", 0.0)
    assert registry.read(REF) != one


def test_a_folder_that_never_rests_does_not_take_down_what_is_served(local_store: ObjectStore) -> None:
    copy(local_store, b"one")
    one = Registry(local_store, adoption=AdoptionRules(lambda _: Fit("smollm2-135m", 4))).read(REF)
    contents = iter(range(100))

    def inspect(folder: Path) -> Fit:
        copy(local_store, b"%d" % next(contents))
        return Fit("smollm2-135m", 4)

    copy(local_store, b"start")
    assert Registry(local_store, adoption=AdoptionRules(inspect)).read(REF) == one


def test_a_disk_without_room_is_said_before_anything_is_downloaded(
    local_store: ObjectStore, inspector: Inspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=KEPT_FREE_BYTES)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    copy(local_store, b"one")
    with pytest.raises(Unavailable, match="no room"):
        Registry(local_store, adoption=AdoptionRules(inspector)).read(REF)
    assert inspector.calls == 0


Change = Callable[[Registry, str], object]
BY = Actor("k")
CHANGES: dict[str, Change] = {
    "move": lambda registry, version: registry.aliases.move("acme", "support", "production", version, by=BY),
    "roll back": lambda registry, version: registry.aliases.roll_back("acme", "support", by=BY),
    "promote": lambda registry, version: registry.canaries.promote("acme", "support", "production", by=BY),
    "publish again": lambda registry, version: registry.publish_known("acme", "support", version, created_by=BY),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_move_adopts_nothing_and_is_not_undone_by_what_was_copied_before_it(
    store: ObjectStore, registry: Registry, inspector: Inspector, change: str
) -> None:
    copy(store, b"one")
    one = registry.read(REF)
    copy(store, b"two")
    two = registry.read(REF)
    if change == "promote":
        registry.canaries.start("acme", "support", "production", one.version, weight=5, guard=None, by=BY)
    copy(store, b"three")
    assert registry.aliases.history("acme", "support")[0].after == two.version
    CHANGES[change](registry, one.version)
    assert registry.read(REF) == one
    assert inspector.calls == 2
    copy(store, b"four")
    assert registry.read(REF) not in (one, two)


def test_versions_are_retired_and_brought_back_beside_a_folder_that_cannot_be_adopted(store: ObjectStore, registry: Registry) -> None:
    copy(store, b"one")
    one = registry.read(REF)
    copy(store, b"two")
    registry.read(REF)
    store.put(f"{PREFIX}adapter_model.safetensors", b"bad")
    registry.retirement.retire_version("acme", "support", one.version)
    registry.retirement.undelete_version("acme", "support", one.version)
    registry.canaries.start("acme", "support", "production", one.version, weight=5, guard=None, by=BY)
    registry.canaries.abort("acme", "support", "production", by=BY)
    assert "retire" not in {move.why for move in registry.aliases.history("acme", "support")}
    registry.retirement.retire("acme", "support", by=BY)
    with pytest.raises(NotFound):
        registry.read(REF)


def test_a_copied_folder_can_be_deleted_before_anybody_asked_for_it(store: ObjectStore, registry: Registry, inspector: Inspector) -> None:
    copy(store, b"one")
    registry.retirement.retire("acme", "support", by=BY)
    with pytest.raises(NotFound):
        registry.read(REF)
    assert inspector.calls == 0
    copy(store, b"two")
    assert registry.read(REF).created_by == "adopted"
