"""The `lorikeet` command, run in the test's process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Command = Callable[..., "Done"]


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str
