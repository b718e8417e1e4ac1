"""GET /metrics: what this gateway process counts, in Prometheus' format. Engines and nodes report through Ray's own metrics."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """One gateway's counters."""

    def __init__(self, chats_running: Callable[[], float], chats_waking: Callable[[], float]) -> None:
        self._registry = CollectorRegistry()
        self.responses = Counter("lorikeet_http_responses", "Responses begun", ["route", "status"], registry=self._registry)
        Gauge("lorikeet_chats_running", "Chat requests held by this gateway", registry=self._registry).set_function(chats_running)
        waking = Gauge("lorikeet_chats_waking", "Of these, those that wait for a model without a replica", registry=self._registry)
        waking.set_function(chats_waking)
        self.first_token = Histogram(
            "lorikeet_first_token_seconds", "From request to first part of the answer", buckets=_SECONDS, registry=self._registry
        )
        self.adapters_found = Counter("lorikeet_adapters_found", "Where a request's adapter was found", ["where"], registry=self._registry)
        self.trial_requests = Counter(
            "lorikeet_trial_requests",
            "Requests of aliases that have a canary or a shadow, by the version that they went to",
            ["side", "outcome"],
            registry=self._registry,
        )
        self.canaries_tripped = Counter(
            "lorikeet_canaries_tripped", "Canaries that this gateway ended because they failed", registry=self._registry
        )

        self.calls = Counter(
            "lorikeet_calls", "Chats by how they came to their replica: direct, or by Serve", ["way"], registry=self._registry
        )

    def page(self) -> bytes:
        return generate_latest(self._registry)
