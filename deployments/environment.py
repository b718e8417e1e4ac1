"""The environment that Ray Serve must find when it is imported: how Lorikeet runs it.

A module of its own, since `app.py` imports Serve, which reads these variables then and there.
"""

from __future__ import annotations

import resource

from configs.settings import Settings
from deployments import haproxy, haproxy_config

MAX_CONNECTIONS = 16_384


def environment(settings: Settings) -> dict[str, str]:
    """Variables that Serve reads at import, for every process of the cluster: set them before Ray starts, on every node."""
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",  # HTTP goes HAProxy -> gateway, and never crosses Ray
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",  # calls by gRPC, user code on Serve's own loop
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deployments.api.shortcut:middlewares",  # chats past Serve's own HTTP
        "RAY_worker_niceness": "0",  # Ray's workers yield to everything else by default; these are the service
        "RAY_SERVE_HAPROXY_BINARY_PATH": haproxy.command(),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_MAXCONN": str(_max_connections()),
        # A reload must not cut a stream that may still run.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(int(settings.gateway.request_timeout_seconds) + 30),
        # Honest 503s (a sleeping model, a store that is down) are answers, not a sick gateway.
        "RAY_SERVE_HAPROXY_OBSERVE_MARK_DOWN_ENABLED": "0",
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        # A gateway that dies is noticed by those that wait for its answer: `haproxy_config.py` says which may be made again.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_HAPROXY_RETRIES": str(haproxy_config.RETRIES),
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(haproxy_config.BUFFER_BYTES),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        # Serve's controller looks at everything, and each process sums its metrics up, ten times a second by default, busy or not.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.25",
        "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
    }


def _max_connections() -> int:
    """As many as the limit on open files allows HAProxy, which takes two and a half for each and does not start with fewer."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if hard == resource.RLIM_INFINITY else max(256, min(MAX_CONNECTIONS, int((hard - 1000) / 2.5)))
