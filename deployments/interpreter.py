"""How the threads of a process share Python's interpreter.

A thread that has it keeps it for 5 ms, and a loop that serves streams waits as long for each of its own threads that wants it too: one that
asks the store, or reads an adapter.
"""

from __future__ import annotations

import sys

HAND_OVER_SECONDS = 0.0005


def hand_over_soon() -> None:
    """For a process whose loop serves streams, and whose threads work beside it."""
    sys.setswitchinterval(HAND_OVER_SECONDS)
