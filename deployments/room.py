"""How many requests a replica holds, whichever way they came.

A direct call that finds no room is refused, and its gateway tries elsewhere; one that came through Serve waits its turn here, where the
autoscaler sees it. Whoever waits goes first.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Room:
    """Bounded by what the last call said is the most: that may change while the replica runs."""

    def __init__(self) -> None:
        self.held = 0
        self._most = 0  # 0 is unbounded
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def load(self) -> int:
        """Requests that are held and that wait."""
        return self.held + len(self._waiting)

    def take(self, most: int) -> bool:
        """Whether there is room for one more, which is then held until `give`."""
        if most and most != self._most:
            self._most = most
            self._let_in()
        if self._waiting or self._full:
            return False
        self.held += 1
        return True

    async def wait(self, most: int) -> None:
        """Hold one more until `give`, when its turn comes."""
        if self.take(most):
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give()
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise

    def give(self) -> None:
        self.held -= 1
        self._let_in()

    @property
    def _full(self) -> bool:
        return bool(self._most) and self.held >= self._most

    def _let_in(self) -> None:
        while self._waiting and not self._full:
            turn = self._waiting.popleft()
            if not turn.done():
                self.held += 1
                turn.set_result(None)
