"""The processes of one stack: what they have cost, pausing them while another stack is measured, and ending them all.

A stack's first process carries the mark that `lorikeet up` also uses for its own, so its whole tree is found, haproxy and Ray's daemons
included, whichever of them started a session of its own.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from cluster.processes import RUN_ID, of_run, stop_run

ROOT = Path(__file__).parents[1]
STOP_TIMEOUT_SECONDS = 45.0


class ProcessTree:
    """A running command and everything that it has started."""

    def __init__(self, run_id: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self._run_id = run_id
        self._process = process
        self.log = log

    def require_alive(self) -> None:
        """Raises RuntimeError with the end of its log once the command has ended."""
        if self._process.poll() is not None:
            raise RuntimeError(f"it ended with {self._process.returncode}; the end of {self.log}:\n{self.tail()}")

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]

    def cpu_seconds(self) -> dict[tuple[int, float], float]:
        """CPU time that each living process has used so far, user and system, by pid and start."""
        used: dict[tuple[int, float], float] = {}
        for process in of_run(self._run_id):
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                used[process.pid, process.create_time()] = times.user + times.system
        return used

    def memory_bytes(self) -> int:
        """Memory that its processes have for themselves, shared pages divided among those that share them."""
        total = 0
        for process in of_run(self._run_id):
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss
        return total

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it as Ctrl-C would, then whatever is left of it."""
        self.resume()
        self._process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_TIMEOUT_SECONDS)
        stop_run(self._run_id)
        self._process.wait(5.0)

    def _signal(self, number: signal.Signals) -> None:
        for process in of_run(self._run_id):
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)


@contextlib.contextmanager
def running(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[ProcessTree]:
    """Run a command with its output in `log`, and stop it with all that it has started."""
    run_id = secrets.token_hex(8)
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment, RUN_ID: run_id}
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=variables, cwd=log.parent, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    tree = ProcessTree(run_id, process, log)
    try:
        yield tree
    finally:
        tree.stop()


def spent(before: Mapping[tuple[int, float], float], after: Mapping[tuple[int, float], float]) -> float:
    """CPU seconds between two readings; a process that ended meanwhile counts as of its last reading."""
    return sum(used - before.get(who, 0.0) for who, used in after.items())
