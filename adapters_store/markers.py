"""Markers: empty objects whose KEYS say all that a listing shows, so that a page of adapters is a page of keys.

    index/<owner>/<name>/[<tags>/]<base, quoted>,<rank>,<created_at>,<version in base64url>     a public adapter
    index-by/<facet>/<owner>/<name>/…                                                           the same, once for its base and for each tag
    private/…  private-by/<facet>/…                                                             likewise for a private adapter

A facet is the hash of a base or of a tag. So each question that a listing answers (all, of one base, with one tag; public, or one owner's)
is one contiguous range of keys, in the order of names, however many adapters lie outside of it.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

from adapters_store.labels import decode_tags, encode_tags

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AdapterSummary:
    """One adapter in a listing: the version that its `production` alias serves (any other, where that alias is absent)."""

    owner: str
    name: str
    base: str
    rank: int
    version: str
    created_at: int  # seconds since the epoch, of the version
    tags: Mapping[str, str] = field(default_factory=dict)
    private: bool = False

    @property
    def adapter_name(self) -> str:
        return f"{self.owner}/{self.name}"

    @property
    def place(self) -> str:
        """Where it comes in a listing: as its keys do."""
        return f"{self.owner}/{self.name}/"


def base_facet(base: str) -> str:
    return _facet("base", base)


def tag_facet(key: str, value: str) -> str:
    return _facet("tag", key, value)


def listing_prefix(owner: str | None = None, name: str | None = None, *, private: bool, facet: str | None = None) -> str:
    """What the keys of a listing, or of one owner's or adapter's part of it, begin with."""
    root = "private" if private else "index"
    return "/".join(part for part in (f"{root}-by/{facet}" if facet else root, owner, name, "") if part is not None)


def keys_of(adapter: AdapterSummary) -> tuple[str, ...]:
    """Every marker of an adapter: first the one that all others follow from, then those by facet."""
    version = base64.urlsafe_b64encode(bytes.fromhex(adapter.version)).decode().rstrip("=")
    # At most 195 + 3 + 10 + 43 characters and three commas: within the 255 of a file name.
    marker = f"{quote(adapter.base, safe='')},{adapter.rank},{adapter.created_at},{version}"
    tail = f"{encode_tags(adapter.tags)}/{marker}" if adapter.tags else marker
    facets = (None, base_facet(adapter.base), *(tag_facet(*tag) for tag in adapter.tags.items()))
    return tuple(listing_prefix(adapter.owner, adapter.name, private=adapter.private, facet=facet) + tail for facet in facets)


def parse_key(key: str) -> AdapterSummary | None:
    """The adapter that a marker is of, or None for an object that is no marker."""
    try:
        root, *parts = key.split("/")
        if root.endswith("-by"):
            parts = parts[1:]
        owner, name, *tags, marker = parts
        base, rank, created_at, version = marker.split(",")
        return AdapterSummary(
            owner,
            name,
            unquote(base),
            int(rank),
            base64.urlsafe_b64decode(version + "=").hex(),
            int(created_at),
            decode_tags(tags[0]) if tags else {},
            root.startswith("private"),
        )
    except ValueError:
        logger.warning("index_marker_ignored", extra={"key": key})  # a stray object of somebody else's
        return None


def _facet(*parts: str) -> str:
    digest = hashlib.sha256("\0".join(parts).encode()).digest()[:16]
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
