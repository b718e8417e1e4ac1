"""What is deployed: the settings that the cluster serves by, kept in Ray's own tables, where they live and end with the cluster.

    lorikeet up, lorikeet deploy ── write ──▶ Ray's key-value table ── read, every second ──▶ each gateway: which names it serves

With Redis under Ray's tables it outlives the head. Not in the store: two clusters may share one. Not in Serve's user_config: while
Serve hands that to a gateway, it takes the gateway out of HAProxy (docs/decisions/0008-how-models-change-on-a-running-cluster.md).
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from ray.experimental import internal_kv

from configs.settings import ModelSettings, Settings

_NAMESPACE, _KEY = "lorikeet", "deployed"


@dataclass(frozen=True, slots=True)
class Deployed:
    """`settings` is the target, model by model. Of its models, gateways serve the `announced`; the applications of the `unsettled` may not
    be as the settings say, because a deploy is under way or did not finish: the next one applies them again."""

    settings: Settings
    announced: frozenset[str]
    unsettled: frozenset[str] = frozenset()

    @classmethod
    def whole(cls, settings: Settings) -> Deployed:
        """All of `settings`, announced and settled."""
        return cls(settings, frozenset(model.id for model in settings.models))

    @property
    def served(self) -> tuple[ModelSettings, ...]:
        return tuple(model for model in self.settings.models if model.id in self.announced)

    def to_json(self) -> bytes:
        fields = {
            "settings": self.settings.model_dump(mode="json"),
            "announced": sorted(self.announced),
            "unsettled": sorted(self.unsettled),
        }
        return json.dumps(fields).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Deployed:
        """Raises ValueError (pydantic's is one) or KeyError when another release wrote it and this one cannot read it."""
        fields = json.loads(data)
        return cls(Settings.model_validate(fields["settings"]), frozenset(fields["announced"]), frozenset(fields["unsettled"]))


def write(deployed: Deployed) -> None:
    """Replace the record of the connected cluster. Blocks."""
    internal_kv._internal_kv_put(_KEY, deployed.to_json(), overwrite=True, namespace=_NAMESPACE)


def read() -> bytes | None:
    """The record of the connected cluster as it was written, None where nothing was deployed. Blocks, while Ray's head is away for long."""
    found: bytes | None = internal_kv._internal_kv_get(_KEY, namespace=_NAMESPACE)
    return found
