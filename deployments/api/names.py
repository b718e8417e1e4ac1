"""Names in URLs and query parameters, checked where they come in, so that a refusal names the parameter."""

from __future__ import annotations

from adapters_store.errors import InvalidName, InvalidRequest
from adapters_store.names import ModelRef, check_segment


def check_names(**segments: str) -> None:
    """Each of `segments` (owner, name, alias) may be one. Raises InvalidRequest naming the first that may not."""
    for what, text in segments.items():
        try:
            check_segment(what, text)
        except InvalidName as error:
            raise InvalidRequest(error.message, param=what) from None


def check_after(after: str) -> None:
    """`after` may begin a page: an adapter's owner/name. Raises InvalidRequest."""
    try:
        ref = ModelRef.parse(after)
    except InvalidName:
        ref = None
    if ref is None or ref.adapter_name != after:
        raise InvalidRequest(f"after is {after[:120]!r}: give the last owner/name of the page before", param="after")
