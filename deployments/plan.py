"""What a deploy would change: the difference between what is deployed and what is wanted. Pure; `rollout.py` carries it out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from configs.settings import ModelSettings, Settings, SharedSettings
from deployments.identity import replica_arguments, version_of
from deployments.record import Deployed

_SECRET = "environment."  # noqa: S105  (a prefix of paths: their values may be tokens, and are not shown)
_ELSEWHERE = ("demo_adapters", "ray.", "gateway.replicas")  # said to `up`, or changed in place


class NotChangeable(RuntimeError):
    """The wanted settings differ in something that a deploy does not change."""


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One setting of a model by its dotted path. None is a setting that is not there."""

    path: str
    old: Any
    new: Any

    def shown(self) -> tuple[str, str]:
        """Both values for the terminal; what may be secret is not shown."""
        if self.path.startswith(_SECRET):
            return "(hidden)", "(hidden)"
        return _text(self.old), _text(self.new)


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to one base model. A change without fields is one that an earlier deploy began and did not finish.

    `restarts`: its replicas are replaced, one after another, each after the requests that it runs.
    """

    kind: Literal["add", "change", "remove"]
    model: str
    fields: tuple[FieldChange, ...] = ()
    restarts: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """`gateways` is the number of gateway processes, before and after, if that changes."""

    changes: tuple[Change, ...]
    gateways: tuple[int, int] | None = None

    @property
    def empty(self) -> bool:
        return not self.changes and self.gateways is None

    def models(self, *kinds: str) -> tuple[str, ...]:
        return tuple(change.model for change in self.changes if change.kind in kinds)


def plan_of(deployed: Deployed, wanted: Settings) -> Plan:
    """What turns `deployed` into `wanted`: removals, then changes, then additions.

    Raises:
        NotChangeable: they differ in settings that all processes share, or that Serve takes at its start only.
    """
    _check_shared(deployed.settings, wanted)
    known = {model.id: model for model in deployed.settings.models}
    ids = {model.id for model in wanted.models}
    removed = [Change("remove", id) for id in known if id not in ids]
    changed, added = [], []
    for model in wanted.models:
        if model.id not in deployed.announced:
            added.append(Change("add", model.id))
        elif (known[model.id] != model) or model.id in deployed.unsettled:
            changed.append(_change(deployed.settings, known[model.id], wanted, model))
    before, after = deployed.settings.gateway.replicas, wanted.gateway.replicas
    return Plan((*removed, *changed, *added), (before, after) if before != after else None)


def _change(deployed: Settings, old: ModelSettings, wanted: Settings, new: ModelSettings) -> Change:
    restarts = version_of(replica_arguments(deployed, old)) != version_of(replica_arguments(wanted, new))
    return Change("change", new.id, tuple(_differences(old, new)), restarts)


def _check_shared(deployed: Settings, wanted: Settings) -> None:
    shared = set(SharedSettings.model_fields)
    changes = [change for change in _differences(deployed, wanted, only=shared) if not change.path.startswith(_ELSEWHERE)]
    if not changes:
        return
    told = ", ".join(f"{change.path} ({' -> '.join(change.shown())})" for change in changes)
    raise NotChangeable(
        f"a deploy changes base models and gateway.replicas, not {told}: leave that as it is, or stop and start (`lorikeet down`, "
        "`lorikeet up`), or move to a second cluster on the same store (docs/cluster.md)"
    )


def _differences(
    old: SharedSettings | ModelSettings, new: SharedSettings | ModelSettings, only: set[str] | None = None
) -> Iterator[FieldChange]:
    before, after = dict(_leaves(old.model_dump(include=only))), dict(_leaves(new.model_dump(include=only)))
    for path in {**before, **after}:
        if before.get(path) != after.get(path):
            yield FieldChange(path, before.get(path), after.get(path))


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _text(value: Any) -> str:
    return "(not set)" if value is None else str(list(value) if isinstance(value, tuple) else value)
