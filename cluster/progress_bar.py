"""A bar for bytes on their way: one line that is written over, on a terminal; nothing anywhere else."""

from __future__ import annotations

import shutil
import time
from types import TracebackType
from typing import Self, TextIO

REDRAW_SECONDS = 0.1
BAR_CHARACTERS = 30


class ProgressBar:
    """`update` may be called often and from any thread that holds a lock; `show=False` keeps it quiet on a terminal too."""

    def __init__(self, out: TextIO, *, show: bool = True) -> None:
        self._out = out
        self._shown = show and out.isatty()
        self._began_at: float | None = None
        self._began_bytes = 0
        self._drawn_at = 0.0
        self._drawn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._drawn:
            self._out.write("\n")
            self._out.flush()

    def update(self, done_bytes: int, all_bytes: int) -> None:
        if not self._shown:
            return
        now = time.monotonic()
        if self._began_at is None:
            self._began_at, self._began_bytes = now, done_bytes  # what was there before says nothing of the speed
        if now - self._drawn_at < REDRAW_SECONDS and done_bytes != all_bytes:
            return
        self._drawn_at, self._drawn = now, True
        line = drawn(done_bytes, all_bytes, (done_bytes - self._began_bytes) / max(now - self._began_at, 1e-3))
        width = shutil.get_terminal_size().columns - 1
        self._out.write("\r" + line[:width].ljust(width))
        self._out.flush()


def drawn(done_bytes: int, all_bytes: int, bytes_per_second: float) -> str:
    """`[######....]  60%  600.0 of 1000.0 MB  50.0 MB/s  8 s left`."""
    share = done_bytes / all_bytes if all_bytes else 1.0
    filled = int(share * BAR_CHARACTERS)
    line = f"[{'#' * filled}{'.' * (BAR_CHARACTERS - filled)}] {share:4.0%}  {done_bytes / 1e6:.1f} of {all_bytes / 1e6:.1f} MB"
    if done_bytes == all_bytes:
        return line + "  checking and publishing"
    if bytes_per_second > 0:
        line += f"  {bytes_per_second / 1e6:.1f} MB/s  {(all_bytes - done_bytes) / bytes_per_second:.0f} s left"
    return line
