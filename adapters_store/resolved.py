"""What a name means at a moment, immutable: the version that its alias serves, and what stands beside it."""

from __future__ import annotations

from dataclasses import dataclass

from adapters_store.adapter import Adapter
from adapters_store.canary import Canary, Shadow, place_of
from adapters_store.names import ModelRef


@dataclass(frozen=True, slots=True)
class CanaryArm:
    """A canary, and the version that it is of."""

    canary: Canary
    adapter: Adapter


@dataclass(frozen=True, slots=True)
class ShadowArm:
    """A shadow, and the version that it is of."""

    shadow: Shadow
    adapter: Adapter


@dataclass(frozen=True, slots=True)
class Resolved:
    """`private`: only its owner may know."""

    adapter: Adapter
    private: bool
    canary: CanaryArm | None = None
    shadow: ShadowArm | None = None

    def for_person(self, ref: ModelRef, person: str) -> Adapter:
        """The version that answers `person`, who asked for `ref`: the same one each time, at every gateway."""
        if self.canary is not None and place_of(alias_of(ref), person) < self.canary.canary.weight:
            return self.canary.adapter
        return self.adapter


def alias_of(ref: ModelRef) -> str:
    """`owner/name:alias`, whichever way it was written."""
    return f"{ref.adapter_name}:{ref.alias}"
