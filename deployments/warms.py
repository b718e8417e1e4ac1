"""What a replica loads before anybody asks for it: a gateway's `WarmCall` (`calls.py`), on its way to the engine.

    reception.warm ──▶ holds what it is to take the place of? ──▶ one of a few places ──▶ used for a moment, so as if just asked for
                                    └── no: nothing is loaded

A warm is no request: it takes none of the replica's room and counts in no load, so neither the autoscaler nor placement sees it. What is
warmed is kept and given back by the engine's own rule (`engine/adapters.py`), and a request for it meanwhile waits for the same load.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from deployments.messages import WarmCall

if TYPE_CHECKING:
    from deployments.engine.adapters import EngineAdapters, UsedAdapter

AT_ONCE = 2  # loads: requests' own go beside them, and the engine's worker reads two at a time


class Warms:
    def __init__(self, adapters: EngineAdapters) -> None:
        self._adapters = adapters
        self._places = asyncio.Semaphore(AT_ONCE)

    async def load(self, call: WarmCall) -> UsedAdapter | None:
        """Have the engine hold the adapter of `call`; where it was found. None where the engine holds nothing that it takes the place of.

        Raises StoreUnavailable, NotFound, Unavailable, InternalError.
        """
        if call.instead_of and not any(map(self._adapters.holds, call.instead_of)):
            return None
        async with self._places, self._adapters.use(call.adapter) as used:
            return used
