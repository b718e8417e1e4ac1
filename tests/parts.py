"""Where an engine's answer goes in a test, instead of to a gateway."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class KeptParts:
    """Keeps what it is given; what is to come later too, at once or, while `held`, when it is let go."""

    parts: list[bytes] = field(default_factory=list)
    held: bool = False
    later: list[Callable[[], bytes]] = field(default_factory=list)

    def emit(self, part: bytes) -> None:
        self.parts.append(part)

    def emit_later(self, make: Callable[[], bytes]) -> None:
        self.later.append(make)
        if not self.held:
            self.let_go()

    def let_go(self) -> None:
        for make in self.later:
            self.parts += filter(None, [make()])
        self.later.clear()
