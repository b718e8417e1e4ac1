"""What state each base model is in, from Serve's controller: asked at most once a second, in a thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor

from ray import serve
from ray.serve._private.common import DeploymentStatus, ReplicaState  # the public schema uses it and does not export it
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from deployments.names import REPLICA, app_of

_FRESH_SECONDS = 1.0
_TIMEOUT_SECONDS = 5.0
_STATES = {
    ApplicationStatus.RUNNING: "ready",
    ApplicationStatus.DEPLOYING: "starting",
    ApplicationStatus.DEPLOY_FAILED: "failed",
    ApplicationStatus.UNHEALTHY: "unhealthy",
    ApplicationStatus.DELETING: "stopping",
    ApplicationStatus.NOT_STARTED: "starting",
}


def model_states(models: Sequence[str]) -> dict[str, str]:
    """Each base model's state: ready, asleep (scaled to zero), starting, failed, unhealthy, stopping or absent. Blocks."""
    applications = serve.status().applications
    return {model: _state(applications.get(app_of(model))) for model in models}


def _state(application: ApplicationStatusOverview | None) -> str:
    if application is None:
        return "absent"
    state = _STATES.get(application.status, "starting")
    deployment = application.deployments.get(REPLICA)
    if deployment is None or state == "failed":
        return state
    running = deployment.replica_states.get(ReplicaState.RUNNING, 0)
    if running:
        return "ready"  # also while others of its replicas start or restart
    return "asleep" if deployment.status == DeploymentStatus.HEALTHY else state if state != "ready" else "starting"


class Readiness:
    """Asks for the models' states, and remembers the answer for a second. A controller that does not answer is "unknown"."""

    def __init__(self, models: Sequence[str], threads: Executor) -> None:
        self._threads = threads
        self.watch(models)

    def watch(self, models: Sequence[str]) -> None:
        """From now on these are the models asked for."""
        self._models = tuple(models)
        self._states: Mapping[str, str] = dict.fromkeys(models, "starting")
        self._read_at = -_FRESH_SECONDS
        self._reading: asyncio.Future[dict[str, str]] | None = None

    async def __call__(self) -> Mapping[str, str]:
        if time.monotonic() - self._read_at < _FRESH_SECONDS:
            return self._states
        if self._reading is None or self._reading.done():
            self._reading = asyncio.get_running_loop().run_in_executor(self._threads, model_states, self._models)
        reading = self._reading
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                states: Mapping[str, str] = await asyncio.shield(reading)
        except Exception:
            states = dict.fromkeys(self._models, "unknown")
        else:
            if reading is not self._reading:  # other models are served since
                return states
            self._read_at = time.monotonic()
        self._states = states
        return states
