"""JSON from outside, read strictly: one object, no key twice, no NaN, no half characters; and values from outside, quoted for a message.

Under the readers of adapter_config.json (`peft_config.py`) and of safetensors headers (`safetensors_header.py`). Two readers may take
two different values of a repeated key, and one of them is the engine, so what is ambiguous is refused, and so is what only Python reads:
safetensors' own reader takes neither half a surrogate pair nor -0, and would fail at what was let in.
"""

from __future__ import annotations

import json
from typing import Any

from adapters_store.errors import InvalidRequest

MAX_QUOTED = 120


def parse_object(raw: bytes, what: str) -> dict[str, Any]:
    """The JSON object in `raw`. Raises InvalidRequest, opening with `what`, when there is none."""
    try:
        parsed = json.loads(raw.decode("utf-8"), object_pairs_hook=_distinct, parse_constant=_no_constant, parse_int=_plain_int)
        if b"\\u" in raw:
            json.dumps(parsed, ensure_ascii=False).encode()
    except UnicodeError:  # decoding; or encoding again, where an escape stands for half a surrogate pair
        raise InvalidRequest(f"{what} is not UTF-8 text: save and upload it again.") from None
    except RecursionError:
        raise InvalidRequest(f"{what} is not valid JSON (nested too deeply): save and upload it again.") from None
    except ValueError as error:
        raise InvalidRequest(f"{what} is not valid JSON ({str(error)[:MAX_QUOTED]}): save and upload it again.") from None
    if not isinstance(parsed, dict):
        raise InvalidRequest(f"{what} is not a JSON object: save and upload it again.")
    return parsed


def quote(value: object) -> str:
    """`value` as a message shows it: on one line and of bounded length."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested deeply, or an integer of thousands of digits
        return "a value too large to show"
    return text if len(text) <= MAX_QUOTED else text[: MAX_QUOTED - 3] + "..."


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {quote(key)} stands twice")
        found[key] = value
    return found


def _plain_int(text: str) -> int:
    if text == "-0":
        raise ValueError("-0 is not a whole number")
    return int(text)


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a number in JSON")
