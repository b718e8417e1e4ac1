"""What the terminal shows while `lorikeet up` works: one line when a step begins, one when it ends, one now and then in between.

Plain lines in a file and in a pipe as in a terminal, so that `up -d` can show its log and CI stays readable.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class Progress:
    """Prints steps with their elapsed seconds to `out` (standard output). One step at a time; `note` may be called from any thread."""

    def __init__(self, out: TextIO | None = None, *, repeat_seconds: float = 10.0) -> None:
        self._out = out or sys.stdout
        self._repeat_seconds = repeat_seconds
        self._began = time.monotonic()
        self._noted = self._began

    @contextmanager
    def step(self, doing: str) -> Iterator[None]:
        """Show `doing` until the block ends; a step that takes long says so every `repeat_seconds`."""
        began = time.monotonic()
        ended = threading.Event()
        self.note(f"{doing} ...")

        def remind() -> None:
            while not ended.wait(self._repeat_seconds):
                if time.monotonic() - self._noted >= self._repeat_seconds:
                    self.note(f"  still {doing[:1].lower()}{doing[1:]} ({time.monotonic() - began:.0f} s)")

        reminder = threading.Thread(target=remind, daemon=True, name="progress")
        reminder.start()
        try:
            yield
        finally:
            ended.set()
            reminder.join()
        self.note(f"  done in {time.monotonic() - began:.1f} s")

    def note(self, line: str) -> None:
        """One line, with the seconds since the start."""
        self._noted = time.monotonic()
        print(f"[{self._noted - self._began:5.1f} s] {line}", file=self._out, flush=True)

    def plain(self, text: str) -> None:
        """Text as it is, for what is meant to be copied."""
        print(text, file=self._out, flush=True)
