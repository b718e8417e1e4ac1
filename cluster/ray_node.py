"""The Ray under one run: started in this process, so that its daemons die with us, or joined where it already runs.

Between the checks and `deployments.app.deploy`. Environment variables come first: Ray's daemons, workers, and Serve's haproxy inherit
them from the process that starts Ray, and Serve reads its own when it is imported.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from cluster.ports import pick_free

OBJECT_STORE_BYTES = 256 << 20  # tokens and adapters do not cross Ray's object store; by default it takes 30% of the memory
START_ATTEMPTS = 2
AUTH_MODE = "RAY_AUTH_MODE"  # Ray sets it for a cluster of our own: who joins shows the token that is kept in ~/.ray

logger = logging.getLogger(__name__)


def auth_environment(mode: str) -> dict[str, str]:
    """What joins a cluster as the run did that noted `mode` (`run_file.Run.ray_auth_mode`); nothing where it noted none."""
    return {AUTH_MODE: mode} if mode else {}


def set_environment(run_id: str, wanted: Mapping[str, str]) -> dict[str, str]:
    """Set what Ray and Serve must find in their environment; what the user has set already stays. Returns what was set.

    `wanted` is what the deployments ask for. Added here: ports and a folder for Serve's haproxy that no other run on this
    machine has.
    """
    stats_port, metrics_port, fallback_port, fallback_grpc_port = pick_free(4)
    folder = haproxy_folder(run_id)
    variables = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        # Where HAProxy turns while there is no gateway: on the default port it could find another run's.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_port),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(fallback_grpc_port),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{folder}/metrics.sock",
        **wanted,
    }
    if "ray.serve" in sys.modules:
        raise RuntimeError("ray.serve was imported before its environment was set: import it inside functions on the way of `lorikeet up`")
    fresh = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(fresh)
    return fresh


def haproxy_folder(run_id: str) -> Path:
    """Where this run's haproxy keeps its files. Short, because a unix socket's path ends at 107 bytes."""
    return Path(tempfile.gettempdir()) / f"lk-{run_id[:8]}"


def start(address: str, environment: Mapping[str, str]) -> None:
    """Connect to Ray: a cluster of our own when `address` is empty. Call it in the main thread: Ray's daemons end with that thread."""
    import ray

    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # what it does at INFO, our own steps say
    if address:
        # The daemons of a running cluster do not have our environment; its workers get it with the job.
        ray.init(address, runtime_env={"env_vars": dict(environment)}, log_to_driver=False, logging_level=logging.ERROR)
        return
    for attempt in range(START_ATTEMPTS):
        try:
            ray.init(
                "local",  # not a cluster that RAY_ADDRESS or an earlier `ray start` names
                include_dashboard=False,
                log_to_driver=False,  # workers log to files; forwarded lines would drown the terminal
                logging_level=logging.ERROR,
                object_store_memory=OBJECT_STORE_BYTES,
            )
            return
        except Exception:  # Ray raises a bare one: it gives its daemons 30 s, which a busy machine can exceed
            logger.warning("ray_start_failed", extra={"attempt": attempt + 1}, exc_info=True)
            ray.shutdown()
            if attempt + 1 == START_ATTEMPTS:
                raise


def join(address: str, environment: Mapping[str, str]) -> None:
    """Be in a running cluster for a short while, to change what it serves; its processes keep the environment that they have."""
    os.environ.update({name: value for name, value in environment.items() if name not in os.environ})
    import ray

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray.init(address, log_to_driver=False, logging_level=logging.ERROR)


def address() -> str:
    """Where another process joins the Ray that this one is in."""
    import ray

    found: str = ray.get_runtime_context().gcs_address
    return found


def log_folder() -> str:
    """Where Ray and the replicas write their logs."""
    import ray

    node = ray._private.worker._global_node  # there is no public way to it
    return node.get_logs_dir_path() if node else "/tmp/ray"  # noqa: S108  (Ray's own folder)


def is_connected() -> bool:
    """Whether this process has started or joined Ray. Imports nothing: a run that was stopped early has no Ray to ask."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def disconnect() -> None:
    """Leave Ray; ends it where we started it."""
    import ray

    ray.shutdown()


def within(seconds: float, what: str, action: Callable[[], None]) -> bool:
    """Run `action` in a thread and wait at most `seconds`; says whether it ended well. For stopping, where nothing may hang."""
    ended_well = False

    def attempt() -> None:
        nonlocal ended_well
        try:
            action()
            ended_well = True
        except Exception:
            logger.warning("stop_step_failed", extra={"step": what}, exc_info=True)

    thread = threading.Thread(target=attempt, daemon=True, name=what)
    thread.start()
    thread.join(seconds)
    return ended_well


def forget(run_id: str) -> None:
    """Remove the run's haproxy files."""
    shutil.rmtree(haproxy_folder(run_id), ignore_errors=True)
