"""How often each adapter was asked for of late: what an engine goes by when it has to give one back (`adapters.py`).

Counts fade as others are asked for, so that what was popular once makes room. They outlive an adapter's stay in the engine: one that
comes back is not as good as new.
"""

from __future__ import annotations

from collections import OrderedDict

HALF_LIFE = 4  # in times of `room`: after so many uses of any, a count is half of what it was
REMEMBERED = 10  # in times of `room`: how many adapters are counted, the last that were used


class Popularity:
    """Faded counts of uses, by key. `room` is how many of them can be kept at once."""

    def __init__(self, room: int) -> None:
        self._half_life = HALF_LIFE * room
        self._remembered = REMEMBERED * room
        self._uses = 0
        self._counts: OrderedDict[str, tuple[float, int]] = OrderedDict()  # the count, and after how many uses of any it was that

    def count(self, key: str) -> None:
        """`key` was used once more."""
        self._uses += 1
        self._counts[key] = (self.of(key) + 1, self._uses)
        self._counts.move_to_end(key)
        if len(self._counts) > self._remembered:
            self._counts.popitem(last=False)

    def of(self, key: str) -> float:
        """How often `key` was used, the last time counting 1 and one a half-life ago a half; 0 for what is not known."""
        count, then = self._counts.get(key, (0.0, self._uses))
        return float(count * 0.5 ** ((self._uses - then) / self._half_life))
