"""What an owner says of an adapter beside its versions: tags, pairs of strings to search by, and who may see it.

Both are of the name, not of a version, lie in aliases.json (`pointers.py`), and show in listings (`markers.py`), whose keys bound them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

from adapters_store.errors import InvalidRequest

MAX_TAGS = 16
MAX_VALUE_CHARS = 128
MAX_ENCODED_CHARS = 240  # all tags of an adapter in one segment of a key: a file name may have 255

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,47}")


@dataclass(frozen=True, slots=True)
class LabelChange:
    """What to change of an adapter's labels. A tag of None is taken off; `private` None leaves the visibility as it is."""

    tags: Mapping[str, str | None] = field(default_factory=dict)
    private: bool | None = None

    def tags_after(self, before: Mapping[str, str]) -> dict[str, str]:
        """`before` with the change made, by key. Raises InvalidRequest for tags that no adapter may have."""
        merged = {**before, **{key: value for key, value in self.tags.items() if value is not None}}
        after = {key: value for key, value in sorted(merged.items()) if self.tags.get(key, "") is not None}
        return check_tags(after)

    def over(self, earlier: LabelChange) -> LabelChange:
        """`earlier`, and then this."""
        return LabelChange({**earlier.tags, **self.tags}, earlier.private if self.private is None else self.private)

    def beside(self, later: LabelChange) -> LabelChange:
        """What of this is left once `later` was made: it has the last word on what both change."""
        tags = {key: value for key, value in self.tags.items() if key not in later.tags}
        return LabelChange(tags, self.private if later.private is None else None)


NO_CHANGE = LabelChange()


def write_label_change(change: LabelChange) -> dict[str, Any]:
    return {"tags": dict(change.tags), "private": change.private}


def read_label_change(row: Any) -> LabelChange:
    """Raises ValueError, TypeError, KeyError or AttributeError for what is none."""
    tags = {str(key): None if value is None else str(value) for key, value in row["tags"].items()}
    return LabelChange(tags, None if row["private"] is None else bool(row["private"]))


def check_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """`tags` if an adapter may have them; raises InvalidRequest that names the tag and the bound otherwise."""
    for key, value in tags.items():
        if not _KEY.fullmatch(key):
            raise InvalidRequest(
                f"tag {key[:60]!r} is not valid: name it with 1 to 48 letters, digits, '.', '_' or '-', beginning with a letter or digit",
                param="tags",
            )
        if not value or len(value) > MAX_VALUE_CHARS or not value.isprintable():
            raise InvalidRequest(f"tag {key!r} has no valid value: give 1 to {MAX_VALUE_CHARS} printable characters", param="tags")
    if len(tags) > MAX_TAGS:
        raise InvalidRequest(f"there would be {len(tags)} tags, at most {MAX_TAGS} are kept: take some off", param="tags")
    if len(encode_tags(tags)) > MAX_ENCODED_CHARS:
        raise InvalidRequest(
            f"the tags take {len(encode_tags(tags))} characters together, percent-encoded as in a URL, and at most {MAX_ENCODED_CHARS} "
            "are kept: shorten them",
            param="tags",
        )
    return dict(tags)


def encode_tags(tags: Mapping[str, str]) -> str:
    """All tags as one segment of a store key, by key: `k=v,k=v`; empty for none."""
    return ",".join(f"{key}={quote(value, safe='')}" for key, value in sorted(tags.items()))


def decode_tags(text: str) -> dict[str, str]:
    """What `encode_tags` made. Raises ValueError for what it did not make."""
    pairs = [pair.split("=") for pair in text.split(",")]
    return {key: unquote(value, errors="strict") for key, value in pairs}
