"""All of a listing, a page at a time: for what has to see everything under a prefix. Over `objects.py`'s protocol; calls block."""

from __future__ import annotations

from collections.abc import Iterator

from adapters_store.objects import ObjectInfo, ObjectStore


def objects_under(store: ObjectStore, prefix: str) -> Iterator[ObjectInfo]:
    """Every object under `prefix`, however deep, in key order."""
    after: str | None = None
    while True:
        page = store.list(prefix, start_after=after)
        yield from page.objects
        if (after := page.next_token) is None:
            return


def folders_under(store: ObjectStore, prefix: str) -> Iterator[str]:
    """The name of every folder directly under `prefix`, in key order."""
    after: str | None = None
    while True:
        page = store.list(prefix, delimiter="/", start_after=after)
        yield from (folder.rstrip("/").rpartition("/")[2] for folder in page.folders)
        if (after := page.next_token) is None:
            return
