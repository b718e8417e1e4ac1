"""What this gateway counts of aliases that have a canary or a shadow, and the guard that ends a canary which fails.

    a request's outcome ──▶ counts here ──▶ every second: written to the store ──▶ added up with the other gateways' ──▶ judged

Requests of other names pass through untouched. A store that is away costs nothing but a later verdict. The sums and the judging are in
`adapters_store/trials.py` and `guard.py`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from adapters_store.canary import Guard
from adapters_store.errors import LorikeetError
from adapters_store.guard import judge
from adapters_store.names import PRODUCTION
from adapters_store.tally import Tally
from adapters_store.trials import CANARY, SHADOW, STABLE, Trials, Window
from deployments.api.errors import is_our_fault

if TYPE_CHECKING:
    from adapters_store.registry import Registry
    from adapters_store.resolved import ShadowArm
    from adapters_store.resolver import Resolver
    from deployments.api.metrics import Metrics
    from deployments.api.services import Target

REPORT_SECONDS = 1.0
REPORTS_AT_ONCE = 8
TRIALS_KEPT = 1000
IDLE_SECONDS = 600.0  # what has not been asked for so long is written, and need not be kept here

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Trial:
    """One canary's or shadow's counts since this gateway first met it. `guard` is what it is judged by, if it is."""

    owner: str
    name: str
    alias: str
    id: str
    guard: Guard | None
    sides: dict[str, Tally]
    writer: str = field(default_factory=lambda: secrets.token_hex(8))  # whose counts these are in the store: nobody else's
    changed_at: float = 0.0
    unwritten: bool = False

    def count(self, side: str, *, failed: bool) -> None:
        self.sides[side].count(failed=failed)
        self._change()

    def drop(self, side: str) -> None:
        self.sides[side].dropped += 1
        self._change()

    def _change(self) -> None:
        self.changed_at, self.unwritten = time.monotonic(), True


@dataclass(slots=True)
class Watch:
    """One request's outcome, on its way into the counts of its trials."""

    metrics: Metrics
    counted: Sequence[tuple[_Trial, str]]
    _started: float = field(default_factory=time.perf_counter)

    def first_token(self) -> None:
        """The first part of a stream is here."""
        seconds = time.perf_counter() - self._started
        for trial, side in self.counted:
            trial.sides[side].count_first_token(seconds)

    def ended(self, error: BaseException | None = None) -> None:
        """The answer is complete, or failed. What the client did wrong or broke off is not counted."""
        if error is not None and not is_our_fault(error):
            return
        for trial, side in self.counted:
            trial.count(side, failed=error is not None)
            self.metrics.trial_requests.labels(side, "failed" if error is not None else "answered").inc()

    def dropped(self) -> None:
        """The request was a copy, and there was no room for it."""
        for trial, side in self.counted:
            trial.drop(side)
            self.metrics.trial_requests.labels(side, "dropped").inc()


class TrialCounts:
    """Runs in one event loop; the store is spoken to in `threads`."""

    def __init__(self, trials: Trials, registry: Registry, resolver: Resolver, threads: Executor, metrics: Metrics) -> None:
        self._trials = trials
        self._registry = registry
        self._resolver = resolver
        self._threads = threads
        self._metrics = metrics
        self._running: OrderedDict[str, _Trial] = OrderedDict()  # by id

    def watch(self, target: Target) -> Watch:
        """Count the request that goes to `target`, from now on."""
        resolved = target.resolved
        if resolved is None or (resolved.canary is None and resolved.shadow is None):
            return Watch(self._metrics, ())
        is_stable = target.adapter == resolved.adapter
        counted = []
        if resolved.canary is not None:
            canary = resolved.canary.canary
            counted.append((self._trial(target, canary.trial, CANARY, canary.guard), STABLE if is_stable else CANARY))
        if resolved.shadow is not None and is_stable:
            counted.append((self._trial(target, resolved.shadow.shadow.trial, SHADOW, None), STABLE))
        return Watch(self._metrics, counted)

    def watch_copy(self, target: Target, shadow: ShadowArm) -> Watch:
        """Count the copy that a request to `target` has for its shadow."""
        return Watch(self._metrics, ((self._trial(target, shadow.shadow.trial, SHADOW, None), SHADOW),))

    def counted(self, owner: str, name: str, trial: str) -> Mapping[str, Tally]:
        """What all gateways have written of a trial. Blocks."""
        return self._trials.totals(owner, name, trial)

    async def keep_reporting(self) -> None:
        """Write and judge what was counted, every second, for as long as the gateway lives."""
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            await self.report()

    async def report(self) -> None:
        """Write and judge what was counted since the last report. What cannot be written now is written with the next."""
        at_once = asyncio.Semaphore(REPORTS_AT_ONCE)

        async def report(trial: _Trial) -> None:
            async with at_once:
                await self._report(trial)

        await asyncio.gather(*(report(trial) for trial in list(self._running.values()) if trial.unwritten))
        idle_since = time.monotonic() - IDLE_SECONDS
        for id in [id for id, trial in self._running.items() if not trial.unwritten and trial.changed_at < idle_since]:
            del self._running[id]

    def _trial(self, target: Target, id: str, side: str, guard: Guard | None) -> _Trial:
        trial = self._running.get(id)
        if trial is None:
            ref = target.ref
            assert ref is not None
            trial = _Trial(
                ref.owner, ref.name, ref.alias or PRODUCTION, id, guard, {STABLE: Tally(), side: Tally()}, changed_at=time.monotonic()
            )
            self._running[id] = trial
            if len(self._running) > TRIALS_KEPT:
                self._running.popitem(last=False)
        trial.guard = guard
        return trial

    async def _report(self, trial: _Trial) -> None:
        trial.unwritten = False
        sides = {side: tally + Tally() for side, tally in trial.sides.items()}  # as they are now: counting goes on meanwhile
        try:
            tripped = await asyncio.get_running_loop().run_in_executor(self._threads, self._write_and_judge, trial, sides)
        except LorikeetError as error:
            trial.unwritten = True
            logger.warning("trial_unreported", extra={"adapter": f"{trial.owner}/{trial.name}", "error": type(error).__name__})
        except Exception:
            logger.exception("trial_unreported", extra={"adapter": f"{trial.owner}/{trial.name}"})
        else:
            if tripped:
                self._metrics.canaries_tripped.inc()
                self._resolver.forget(trial.owner, trial.name)

    def _write_and_judge(self, trial: _Trial, sides: Mapping[str, Tally]) -> bool:
        """Whether the canary failed, and this gateway ended it."""
        owner, name = trial.owner, trial.name
        self._trials.report(owner, name, trial.id, trial.writer, sides)
        if trial.guard is None:
            return False
        totals = self._trials.totals(owner, name, trial.id)
        window, etag = self._trials.window(owner, name, trial.id)
        stable, canary = (totals.get(side, Tally()).since(window.start.get(side, Tally())) for side in (STABLE, CANARY))
        verdict = judge(trial.guard, stable, canary)
        if verdict.failed:
            return self._registry.canaries.trip(owner, name, trial.alias, trial.id, verdict.failed)
        if verdict.over:
            self._trials.move_window(owner, name, trial.id, Window(window.number + 1, totals), etag)
        return False
