"""`lorikeet up -d` and `lorikeet down`: the same supervisor in a session of its own, and the way to end it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from cluster import ray_node, run_file
from cluster.processes import kill_run, stop_run
from cluster.run_file import Run
from configs.load import home as home_of
from configs.settings import Settings
from deployments.environment import environment as environment_of

POLL_SECONDS = 0.2
STOP_SECONDS = 20.0  # `up` ends within 15
SERVE_STOP_SECONDS = 40.0  # Serve gives its controller 30


class StartFailed(Exception):
    """The detached supervisor ended before it was ready."""


class StopFailed(Exception):
    """The supervisor is gone, but Serve in the cluster that it had joined may go on."""


def log_file(home: Path) -> Path:
    return home / "logs" / "up.log"


def start(home: Path, arguments: list[str], *, timeout_seconds: float, show: Callable[[str], None]) -> Run:
    """Start `lorikeet up` with these arguments in the background, show its log until it is ready, and return.

    Raises:
        StartFailed: it ended, or was not ready in time (it is stopped then).
    """
    log = log_file(home)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        command = [sys.executable, "-m", "cluster.cli", "up", *arguments]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        child = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )
    deadline = time.monotonic() + timeout_seconds
    try:
        with log.open("rb") as lines:
            return _follow(home, child, lines, deadline, show)
    except BaseException:
        _end(child)
        raise


def _follow(home: Path, child: subprocess.Popen[bytes], lines: BinaryIO, deadline: float, show: Callable[[str], None]) -> Run:
    while time.monotonic() < deadline:
        ended = child.poll() is not None  # this and `ready` before reading, so that the last lines are read
        run = run_file.read(home)
        ready = run is not None and run.pid == child.pid and run.ready_at is not None
        show(lines.read().decode(errors="replace"))
        if run is not None and ready:
            return run
        if ended:
            raise StartFailed(f"lorikeet did not start (exit code {child.returncode}); its log is {log_file(home)}")
        time.sleep(POLL_SECONDS)
    raise StartFailed(f"lorikeet was not ready in time and was stopped; its log is {log_file(home)}")


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(5.0)


def down(settings: Settings) -> bool:
    """End the run of this home and wait for it; False if there was none. Bounded: what does not end in time is killed.

    Raises:
        StopFailed: a supervisor that was killed left Serve in a cluster, and that could not be ended.
    """
    home = home_of(settings)
    run = run_file.read(home)
    if run is None:
        return False
    lived, in_order = run.lives, False
    if lived:
        os.kill(run.pid, signal.SIGTERM)
        in_order = _wait_until(lambda: not run.lives, STOP_SECONDS)
        if not in_order:
            kill_run(run.run_id)
            os.kill(run.pid, signal.SIGKILL)
            _wait_until(lambda: not run.lives, 5.0)
    left = stop_run(run.run_id)
    outlived = bool(run.joined) and not in_order
    if outlived:
        _end_serve(run, settings)
    latest = run_file.read(home)
    if latest is not None and latest.run_id == run.run_id:
        run_file.remove(home)
    return lived or bool(left) or outlived


def _end_serve(run: Run, settings: Settings) -> None:
    """End Serve in the cluster that `run` had joined, as its supervisor would have."""
    environment = environment_of(settings) | ray_node.auth_environment(run.ray_auth_mode)
    remedy = "if that cluster still runs, `serve shutdown -y` on its head stops it"
    try:
        ray_node.join(run.joined, environment)
    except Exception as error:  # Ray raises several, a bare RuntimeError too
        raise StopFailed(f"Serve in the Ray cluster at {run.joined} was not stopped, which cannot be joined: {error}; {remedy}") from error
    try:
        from deployments import app  # not before: Serve reads its environment when it is imported

        if not ray_node.within(SERVE_STOP_SECONDS, "serve", app.shutdown):
            raise StopFailed(f"Serve in the Ray cluster at {run.joined} was not stopped in {SERVE_STOP_SECONDS:.0f} s: {remedy}")
    finally:
        ray_node.disconnect()
    ray_node.forget(run.run_id)


def _wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True
