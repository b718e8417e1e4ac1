"""`lorikeet deploy`: from settings to a changed cluster, seen and agreed to first.

settings ──▶ join the cluster's Ray ──▶ what is deployed ──▶ the difference, shown ──▶ agreed? ──▶ carried out (deployments/rollout.py)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cluster import ray_node, run_file
from cluster.progress import Progress
from configs.load import ConfigError
from configs.load import home as home_of
from configs.settings import Settings
from deployments.environment import environment as environment_of

if TYPE_CHECKING:
    from deployments.plan import Plan

_MARKS = {"add": "+", "change": "~", "remove": "-"}


def deploy(settings: Settings, agree: Callable[[Plan], bool], progress: Progress) -> tuple[Plan, bool]:
    """Have the running cluster serve `settings`; returns the plan, and whether it is carried out (an empty one is).

    `agree` sees the plan before anything changes.

    Raises:
        ConfigError: no running cluster is known.
        NotDeployed, NotChangeable, RuntimeError: see `deployments/rollout.py` and `deployments/plan.py`.
    """
    settings = settings.model_copy(update={"home": str(home_of(settings))})
    with _joined(settings):
        from deployments import plan, rollout  # not before: Serve reads its environment when it is imported

        logging.getLogger("ray.serve").setLevel(logging.WARNING)  # its import has set it to INFO; what is done is said here
        deployed = rollout.read_deployed()
        changes = plan.plan_of(deployed, settings)
        if changes.empty or not agree(changes):
            return changes, changes.empty
        if any(model.source == "embedded" for model in settings.models):
            from cluster.embedded import prepare

            prepare(home_of(settings), progress.note)
        rollout.carry_out(changes, deployed, settings, progress.note)
        return changes, True


def describe(plan: Plan) -> str:
    """The plan as lines for the terminal."""
    lines = []
    for change in plan.changes:
        how = ""
        if change.kind == "change":
            how = " (replicas are replaced)" if change.restarts else " (in place)"
            how = how if change.fields else " (a deploy of it did not finish)"
        lines.append(f"{_MARKS[change.kind]} {change.model}{how}")
        for field in change.fields:
            old, new = field.shown()
            lines.append(f"    {field.path}: {old} -> {new}")
    if plan.gateways:
        lines.append(f"~ gateways (in place)\n    gateway.replicas: {plan.gateways[0]} -> {plan.gateways[1]}")
    return "\n".join(lines) or "nothing to change"


def as_json(plan: Plan, applied: bool) -> dict[str, Any]:
    """The plan for scripts."""
    changes = [
        {
            "change": change.kind,
            "model": change.model,
            "restarts": change.restarts,
            "fields": [{"path": field.path, "old": field.shown()[0], "new": field.shown()[1]} for field in change.fields],
        }
        for change in plan.changes
    ]
    gateways = {"old": plan.gateways[0], "new": plan.gateways[1]} if plan.gateways else None
    return {"changes": changes, "gateways": gateways, "applied": applied}


@contextmanager
def _joined(settings: Settings) -> Iterator[None]:
    """Be in the cluster's Ray: the one that `ray.address` names, or that of the run of this home."""
    environment = environment_of(settings)
    address = settings.ray.address
    run = run_file.read(home_of(settings))
    if not address and run is not None and run.lives:
        address = run.ray_address
        environment |= ray_node.auth_environment(run.ray_auth_mode)
    if not address:
        raise ConfigError(f"no running lorikeet is known in {home_of(settings)}: start one with `lorikeet up`, or give ray.address=")
    ray_node.join(address, environment)
    try:
        yield
    finally:
        ray_node.disconnect()
