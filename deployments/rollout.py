"""Carries a plan out on the running cluster, so that requests to what is not in it notice nothing.

    names of removed models go ──▶ their applications are deleted, draining ──▶ changed and added ones are deployed ──▶ added names come

Whatever the record says is unsettled is applied again by the next deploy, so this may be interrupted anywhere.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection

from ray import serve
from ray.serve.schema import ApplicationStatus

from configs.settings import Settings
from deployments import app, record
from deployments.gateway import WATCH_SECONDS
from deployments.names import GATEWAY_APP, app_of
from deployments.plan import Plan
from deployments.record import Deployed

_POLL_SECONDS = 0.25
_TAKE_UP_SECONDS = 3 * WATCH_SECONDS  # by then every gateway that is not cut off has read the record
_DELETE_SECONDS = 60.0  # beyond the longest request


class NotDeployed(RuntimeError):
    """There is nothing on the cluster that a deploy could change."""


def read_deployed() -> Deployed:
    """What the connected cluster serves by. Raises NotDeployed."""
    found = record.read()
    if found is None and GATEWAY_APP in serve.status().applications:
        raise NotDeployed("this cluster is kept by a file of Serve's configuration: change that, with what `lorikeet serve-config` prints")
    if found is None:
        raise NotDeployed("nothing is deployed on this Ray cluster: start with `lorikeet up`")
    try:
        return Deployed.from_json(found)
    except (ValueError, KeyError):
        raise NotDeployed("another release of lorikeet deployed what runs here: use that, or start anew with `lorikeet up`") from None


def carry_out(plan: Plan, deployed: Deployed, wanted: Settings, note: Callable[[str], None]) -> None:
    """Make the cluster serve `wanted`, and wait until it does.

    Raises:
        RuntimeError: a model did not start; says which and why. The others are as wanted, an added model that failed is gone again.
    """
    rollout = _Rollout(deployed, wanted, note)
    rollout.remove(plan.models("remove"))
    rollout.apply(plan.models("change", "add"), gateways=plan.gateways is not None)
    rollout.finish()


class _Rollout:
    """One deploy under way: what it waits for, and the record as it has written it last."""

    def __init__(self, deployed: Deployed, wanted: Settings, note: Callable[[str], None]) -> None:
        self._record = deployed
        self._wanted = wanted
        self._note = note
        self._deleting: dict[str, float] = {}  # model: deadline
        self._starting: dict[str, float] = {}
        self._failures: list[str] = []

    def remove(self, models: Collection[str]) -> None:
        """From here on they are unknown to new requests; those that run end."""
        if not models:
            return
        self._write(announced=self._record.announced.difference(models), unsettled=self._record.unsettled.union(models))
        time.sleep(_TAKE_UP_SECONDS)
        drain = self._wanted.gateway.request_timeout_seconds + _DELETE_SECONDS
        for model in models:
            self._delete(model, drain)
            self._note(f"{model}: no longer served; its requests end")

    def apply(self, models: Collection[str], *, gateways: bool) -> None:
        """Have Serve make the applications of `models` as wanted; returns at once."""
        leaving = tuple(model for model in self._record.settings.models if model.id in self._deleting)
        settings = self._wanted.model_copy(update={"models": (*self._wanted.models, *leaving)})
        self._write(settings=settings, unsettled=self._record.unsettled.union(models))
        by_id = {model.id: model for model in self._wanted.models}
        targets = [app.model_target(self._wanted, by_id[model]) for model in models]
        if gateways:
            targets.append(app.gateway_target(self._wanted))
        if targets:
            app.run(targets)
        for model in models:
            self._starting[model] = time.monotonic() + by_id[model].startup_timeout_seconds

    def finish(self) -> None:
        """Wait until all is as wanted; each added model is announced as soon as it would answer."""
        while self._starting or self._deleting:
            applications = serve.status().applications
            for model, deadline in list(self._starting.items()):
                found = applications.get(app_of(model))
                if found is not None and found.status == ApplicationStatus.RUNNING:
                    self._settle(model)
                elif found is not None and found.status == ApplicationStatus.DEPLOY_FAILED:
                    self._fail(model, app.failure_of(model))
                elif time.monotonic() > deadline:
                    self._fail(model, f"{model} was not ready in time (models.*.startup_timeout_seconds)")
            for model, deadline in list(self._deleting.items()):
                if app_of(model) not in applications:
                    self._forget(model)
                elif time.monotonic() > deadline:
                    del self._deleting[model]
                    self._failures.append(f"{model} still ends; deploy again to see it gone")
            time.sleep(_POLL_SECONDS)
        if self._failures:
            raise RuntimeError("; ".join(self._failures))

    def _settle(self, model: str) -> None:
        added = model not in self._record.announced
        del self._starting[model]
        self._write(announced=self._record.announced | {model}, unsettled=self._record.unsettled - {model})
        self._note(f"{model}: {'served' if added else 'changed'}")

    def _fail(self, model: str, why: str) -> None:
        del self._starting[model]
        self._failures.append(why)
        if model not in self._record.announced:  # nobody has seen it: do not keep its GPUs
            self._delete(model, self._wanted.gateway.request_timeout_seconds + _DELETE_SECONDS)
            self._note(f"{model}: failed, taken away again")
        else:
            self._note(f"{model}: failed; deploy its former settings, or better ones")

    def _delete(self, model: str, seconds: float) -> None:
        serve.delete(app_of(model), _blocking=False)
        self._deleting[model] = time.monotonic() + seconds

    def _forget(self, model: str) -> None:
        del self._deleting[model]
        others = tuple(known for known in self._record.settings.models if known.id != model)
        self._write(settings=self._record.settings.model_copy(update={"models": others}), unsettled=self._record.unsettled - {model})
        self._note(f"{model}: gone")

    def _write(self, **changes: object) -> None:
        self._record = dataclasses.replace(self._record, **changes)  # type: ignore[arg-type]
        record.write(self._record)
