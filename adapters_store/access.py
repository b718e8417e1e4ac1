"""Who may see and do what. A key has scopes and belongs to a tenant; an adapter's owner is a tenant.

An adapter is public, or private to its owner. What a key may not see does not exist for it: it is told 404, in the words that an unknown
name gets. What it sees but may not change is 403.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Scope(StrEnum):
    INFER = "infer"  # ask models
    UPLOAD = "upload"  # publish and change the adapters of the key's tenant
    ADMIN = "admin"  # everything, of every tenant


@dataclass(frozen=True, slots=True)
class Viewer:
    """Whose private adapters are seen: those of `tenant`, or of every one where that is None."""

    tenant: str | None

    def sees(self, owner: str, *, private: bool) -> bool:
        return not private or self.tenant is None or self.tenant == owner


SEES_ALL = Viewer(None)
