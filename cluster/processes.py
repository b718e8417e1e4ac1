"""The processes of one run, found by a marker in their environment, so that nothing of ours outlives `lorikeet up`.

The supervisor sets RUN_ID before Ray starts and every child inherits it: Ray's daemons and workers, vLLM's, and Serve's haproxy,
which survives a killed driver. Some (Ray's workers) overwrite their environment with their title, so descendants count as well.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

import psutil

RUN_ID = "LORIKEET_RUN_ID"

logger = logging.getLogger(__name__)


def of_run(run_id: str) -> list[psutil.Process]:
    """Every living process of the run except this one and its ancestors: marked ones and their descendants."""
    marker = f"\0{RUN_ID}={run_id}\0".encode()
    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        if process.pid not in spared and marker in _environment(process.pid):
            found[process.pid] = process
            found.update({child.pid: child for child in _descendants(process)})
    if os.environ.get(RUN_ID) == run_id:  # we are the run's supervisor: the marker was set after we started
        found.update({child.pid: child for child in _descendants(psutil.Process())})
    return [process for process in found.values() if process.pid not in spared and _lives(process)]


def stop(processes: Iterable[psutil.Process], *, grace_seconds: float = 3.0) -> list[psutil.Process]:
    """Ask them to end, kill those that have not after `grace_seconds`; returns those that were killed."""
    asked = list(processes)
    for process in asked:
        _send(process, kill=False)
    _, stubborn = psutil.wait_procs(asked, timeout=grace_seconds)
    for process in stubborn:
        _send(process, kill=True)
    psutil.wait_procs(stubborn, timeout=2.0)
    return stubborn


def stop_run(run_id: str, *, grace_seconds: float = 3.0) -> int:
    """Stop what is left of a run; returns how many processes there were. Looks again, for what was started meanwhile."""
    stopped = 0
    for _ in range(3):
        left = of_run(run_id)
        if not left:
            break
        logger.info("stopping_leftovers", extra={"run_id": run_id, "pids": [process.pid for process in left]})
        stop(left, grace_seconds=grace_seconds)
        stopped += len(left)
    return stopped


def kill_run(run_id: str) -> None:
    """Kill all of the run at once."""
    for process in of_run(run_id):
        _send(process, kill=True)


def lives_since(pid: int, started_at: float) -> bool:
    """Whether `pid` is the process that started then (seconds since the epoch), and not a later one with its number."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started_at) < 1.0 and _lives(process)
    except psutil.Error:
        return False


def _environment(pid: int) -> bytes:
    """The environment a process was started with, or what its title left of it; empty where we may not look."""
    try:
        return b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _send(process: psutil.Process, *, kill: bool) -> None:
    try:
        process.kill() if kill else process.terminate()
    except psutil.Error:
        return
