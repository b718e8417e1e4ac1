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

from cluster import run_file
from cluster.processes import kill_run, stop_run
from cluster.run_file import Run

POLL_SECONDS = 0.2
STOP_SECONDS = 20.0  # `up` ends within 15


class StartFailed(Exception):
    """The detached supervisor ended before it was ready."""


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


def down(home: Path) -> bool:
    """End the run of this home and wait for it; False if there was none. Bounded: what does not end in time is killed."""
    run = run_file.read(home)
    if run is None:
        return False
    lived = run.lives
    if lived:
        os.kill(run.pid, signal.SIGTERM)
        if not _wait_until(lambda: not run.lives, STOP_SECONDS):
            kill_run(run.run_id)
            os.kill(run.pid, signal.SIGKILL)
            _wait_until(lambda: not run.lives, 5.0)
    left = stop_run(run.run_id)
    latest = run_file.read(home)
    if latest is not None and latest.run_id == run.run_id:
        run_file.remove(home)
    return lived or bool(left)


def _wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True
