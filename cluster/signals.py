"""How `lorikeet up` is asked to stop: the first Ctrl-C, SIGTERM or SIGHUP ends it in order, a second one at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequested(BaseException):
    """Somebody asked us to stop. Not an Exception, so that no `except Exception` on the way keeps it."""


class StopSignals:
    """Installed once, in the main thread, after Ray was imported (which sets a handler of its own)."""

    def __init__(self, kill: Callable[[], None]) -> None:
        self._kill = kill
        self.requested = False

    def install(self) -> None:
        for number in STOPPING:
            signal.signal(number, self._on_signal)

    def wait(self) -> None:
        """Until a stop is requested; raises StopRequested."""
        while not self.requested:
            signal.pause()
        raise StopRequested

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            self._kill()
            os._exit(128 + number)
        self.requested = True
        raise StopRequested
