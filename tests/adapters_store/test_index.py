"""Listings: searched by owner, base and tags, seen by whom they may be seen, in a bounded number of store calls, over both stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters_store.access import SEES_ALL, Viewer
from adapters_store.errors import InvalidRequest
from adapters_store.history import Actor
from adapters_store.index import CALLS_PER_LISTING, Listing
from adapters_store.labels import LabelChange, check_tags, decode_tags, encode_tags
from adapters_store.markers import AdapterSummary, keys_of, parse_key
from adapters_store.objects import MAX_SEGMENT_BYTES, ObjectStore, check_key
from adapters_store.registry import Registry
from adapters_store.validate import Fit
from tests.adapters_store.faults import FaultyStore
from tests.s3 import S3Endpoint, recorded_requests

BY = Actor("key1")
ACME, BETA = Viewer("acme"), Viewer("beta")

Publish = Callable[..., None]


@pytest.fixture
def registry(store: ObjectStore) -> Registry:
    return Registry(store)


@pytest.fixture
def publish(registry: Registry, tmp_path: Path) -> Publish:
    def call(name: str, content: str = "one", base: str = "small", private: bool | None = None, **tags: str) -> None:
        folder = tmp_path / content
        folder.mkdir(exist_ok=True)
        (folder / "adapter_model.safetensors").write_text(content)
        owner, _, plain = name.partition("/")
        registry.publish(folder, owner, plain, Fit(base, 4), created_by=BY, labels=LabelChange(tags, private))

    return call


def pages(registry: Registry, listing: Listing, limit: int) -> Iterator[list[str]]:
    after: str | None = None
    while True:
        page = registry.list_adapters(listing, start_after=after, limit=limit)
        yield [item.adapter_name for item in page.items]
        if (after := page.next) is None:
            return


def names(registry: Registry, limit: int = 2, **asked: object) -> list[str]:
    return [name for page in pages(registry, Listing(**asked), limit) for name in page]  # type: ignore[arg-type]


def test_a_search_finds_what_has_the_base_and_every_tag(registry: Registry, publish: Publish) -> None:
    publish("acme/a", base="small", task="chat", stage="prod")
    publish("acme/a-b", base="org/large", task="chat")
    publish("acme/b", base="org/large", task="sum", stage="prod")
    publish("beta/a", base="org/large", task="chat", stage="prod")
    publish("beta/b")
    assert names(registry, base="org/large") == ["acme/a-b", "acme/b", "beta/a"]
    assert names(registry, tags={"task": "chat"}) == ["acme/a-b", "acme/a", "beta/a"]  # in the order of keys
    assert names(registry, tags={"task": "chat", "stage": "prod"}) == ["acme/a", "beta/a"]
    assert names(registry, tags={"stage": "prod"}, base="org/large") == ["acme/b", "beta/a"]
    assert names(registry, tags={"stage": "prod"}, base="org/large", owner="beta") == ["beta/a"]
    assert names(registry, tags={"stage": "dev"}) == names(registry, base="none") == []
    assert len(names(registry)) == 5


def test_labels_are_kept_through_publishes_and_changed_one_by_one(store: ObjectStore, registry: Registry, publish: Publish) -> None:
    publish("acme/a", task="chat", stage="dev")
    publish("acme/a", content="two", stage="prod")
    detail = registry.describe("acme", "a")
    assert (detail.tags, detail.private) == ({"task": "chat", "stage": "prod"}, False)
    registry.label("acme", "a", LabelChange({"task": None, "team": "x y/ü,=z"}, private=True))
    detail = registry.describe("acme", "a")
    assert (detail.tags, detail.private) == ({"stage": "prod", "team": "x y/ü,=z"}, True)
    (item,) = registry.list_adapters(Listing(tags={"team": "x y/ü,=z"})).items
    assert (item.tags, item.private, item.version) == (detail.tags, True, detail.versions[0].version)
    assert names(registry, tags={"task": "chat"}) == names(registry, tags={"stage": "dev"}) == []
    assert len(store.list("private").objects) == 4, "the name, its base and two tags"
    assert store.list("index").objects == (), "markers of the public adapter were left behind"


def test_private_adapters_are_listed_for_their_owner_and_for_those_who_see_all(registry: Registry, publish: Publish) -> None:
    publish("acme/open", task="chat")
    publish("acme/secret", private=True, task="chat")
    publish("beta/secret", private=True, task="chat")
    publish("zeta/open", task="chat")
    for search in ({}, {"tags": {"task": "chat"}}, {"base": "small"}):
        assert names(registry, viewer=SEES_ALL, **search) == ["acme/open", "acme/secret", "beta/secret", "zeta/open"]
        assert names(registry, viewer=ACME, **search) == ["acme/open", "acme/secret", "zeta/open"]
        assert names(registry, viewer=BETA, **search) == ["acme/open", "beta/secret", "zeta/open"]
    assert names(registry, viewer=BETA, owner="acme") == ["acme/open"]
    assert names(registry, viewer=BETA, owner="beta") == ["beta/secret"]
    registry.label("acme", "secret", LabelChange(private=False))
    assert names(registry, viewer=BETA, owner="acme") == ["acme/open", "acme/secret"]


def put_many(store: ObjectStore, count: int, tags: Callable[[int], Mapping[str, str]], *, private: Callable[[int], bool]) -> None:
    """Markers as publishing leaves them, without publishing."""
    for number in range(count):
        adapter = AdapterSummary(f"o{number % 3}", f"a{number:05d}", "small", 4, "ab" * 32, 1, tags(number), private(number))
        for key in keys_of(adapter):
            store.put(key, b"")


SEARCHES = [
    {},
    {"base": "small"},
    {"tags": {"half": "1"}},
    {"tags": {"few": "7"}},
    {"tags": {"few": "7"}, "base": "small"},
    {"owner": "o1"},
]


def test_the_first_page_costs_under_ten_calls_of_s3(s3_endpoint: S3Endpoint, s3_store: ObjectStore) -> None:
    put_many(s3_store, 60, lambda number: {"half": str(number % 2), "few": str(number % 20)}, private=lambda number: number % 5 == 0)
    registry = Registry(s3_store)
    for search in SEARCHES:
        for viewer in (SEES_ALL, Viewer("o1"), Viewer("nobody")):
            with recorded_requests(s3_endpoint.url) as requests:
                page = registry.list_adapters(Listing(viewer=viewer, **search), limit=10)  # type: ignore[arg-type]
            assert page.items
            assert len(requests) <= 2, search


def test_a_search_for_what_nothing_has_all_of_ends_short_and_goes_on_where_it_was(s3_store: ObjectStore, monkeypatch) -> None:
    monkeypatch.setattr("adapters_store.index.MAX_PAGE", 5)  # as if there were thousands
    put_many(s3_store, 180, lambda n: {"half": str(n % 2), "last": str(n >= 176)}, private=lambda _: False)
    counting = FaultyStore(s3_store)
    registry = Registry(counting)
    listing = Listing(tags={"half": "1", "last": "True"})
    first = registry.list_adapters(listing, limit=4)
    assert (first.items, first.next is not None) == ((), True)
    assert counting.calls.total() <= 2 * CALLS_PER_LISTING
    assert sorted(name for page in pages(registry, listing, 4) for name in page) == ["o0/a00177", "o2/a00179"]


def test_every_page_holds_the_adapters_once_and_in_order(s3_store: ObjectStore) -> None:
    put_many(s3_store, 50, lambda number: {"half": str(number % 2)}, private=lambda number: number % 3 == 0)
    registry = Registry(s3_store)
    for search in SEARCHES[:3]:
        listing = Listing(**search)  # type: ignore[arg-type]
        whole = [name for page in pages(registry, listing, 1000) for name in page]
        assert whole == sorted(whole)
        assert len(whole) == (25 if "tags" in search else 50)
        for limit in (1, 7):
            assert [name for page in pages(registry, listing, limit) for name in page] == whole


def test_a_crash_between_the_markers_is_put_right_by_the_next_change(store: ObjectStore, publish: Publish) -> None:
    publish("acme/a", task="chat")
    faulty = FaultyStore(store)

    def die(key: str, data: bytes) -> None:
        if key.startswith("index-by/"):
            raise KeyboardInterrupt

    faulty.on_put = die
    with pytest.raises(KeyboardInterrupt):
        Registry(faulty).label("acme", "a", LabelChange({"task": "sum"}))
    registry = Registry(store)
    registry.label("acme", "a", LabelChange())
    assert names(registry, tags={"task": "sum"}) == ["acme/a"]
    assert names(registry, tags={"task": "chat"}) == []
    assert len(store.list("index").objects) == 3


def test_tags_that_no_adapter_may_have_are_refused() -> None:
    for bad in ({"": "x"}, {"a b": "x"}, {"a": ""}, {"a": "x" * 129}, {"a": "\n"}, {"k" * 49: "x"}, {f"k{n}": "x" for n in range(17)}):
        with pytest.raises(InvalidRequest) as error:
            check_tags(bad)
        assert error.value.param == "tags"
    with pytest.raises(InvalidRequest, match="at most 240"):
        check_tags({"a": "ü" * 41})


TEXT = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=30)


@given(st.dictionaries(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,10}", fullmatch=True), TEXT, max_size=5), st.booleans())
def test_a_marker_says_what_it_was_made_of_and_is_a_key(tags: dict[str, str], private: bool) -> None:
    try:
        check_tags(tags)
    except InvalidRequest:
        return
    assert decode_tags(encode_tags(tags)) == tags if tags else encode_tags(tags) == ""
    longest = "o" * 96, "n" * 96, "b" * 96 + "/" + "c" * 96
    adapter = AdapterSummary(*longest, 512, "ab" * 32, 1_700_000_000, tags, private)
    for key in keys_of(adapter):
        assert parse_key(check_key(key)) == adapter
        assert max(map(len, key.split("/"))) <= MAX_SEGMENT_BYTES
