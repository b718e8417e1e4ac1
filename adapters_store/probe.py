"""Whether a store keeps the promises that Lorikeet stands on: conditional writes, and keys in order. `lorikeet doctor` asks it."""

from __future__ import annotations

import contextlib
import uuid

from adapters_store.errors import Conflict
from adapters_store.objects import ObjectStore


def check_conditional_writes(store: ObjectStore) -> bool:
    """Write a probe object under `.probe/` and try to break both conditions; False when the store ignores one.

    Some S3-compatible endpoints ignore If-Match or If-None-Match: on those, two publishers could overwrite each other.

    Raises:
        StoreUnavailable: the store cannot be read or written at all.
    """
    key = f".probe/{uuid.uuid4().hex}"
    try:
        first = store.put(key, b"first", if_absent=True)
        second = store.put(key, b"second", if_match=first)
        refuses_over_existing = _refuses(store, key, if_absent=True)
        refuses_over_changed = _refuses(store, key, if_match=first)
        return second != first and refuses_over_existing and refuses_over_changed and store.get(key)[0] == b"second"
    finally:
        with contextlib.suppress(Exception):  # never hide the finding behind the clean-up
            store.delete(key)


def check_listing_order(store: ObjectStore) -> bool:
    """Whether the store lists by key, as S3 does; False for one that lists folder by folder (SeaweedFS), where pages do not meet.

    Raises StoreUnavailable.
    """
    prefix = f".probe/{uuid.uuid4().hex}/"
    keys = [f"{prefix}{key}" for key in ("a-1/x", "a/x", "a0/x")]  # in the order of bytes: "-" comes before "/"
    try:
        for key in keys:
            store.put(key, b"")
        return [info.key for info in store.list(prefix).objects] == keys
    finally:
        with contextlib.suppress(Exception):
            for key in keys:
                store.delete(key)


def _refuses(store: ObjectStore, key: str, *, if_match: str | None = None, if_absent: bool = False) -> bool:
    try:
        store.put(key, b"third", if_match=if_match, if_absent=if_absent)
    except Conflict:
        return True
    return False
