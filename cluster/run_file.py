"""What is known of the run that a home folder belongs to: `run.json` says it, a lock on `run.lock` proves that it lives.

Written by the supervisor of `lorikeet up`; read by `down`, `status`, `chat` and by the next `up`, which finds here what a killed one left.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from cluster.processes import lives_since


class AlreadyRunning(Exception):
    """Another supervisor has this home."""


@dataclass(frozen=True, slots=True)
class Run:
    """One `lorikeet up`. `config` and `overrides` are what it was started with; `ready_at` is None until a request would be answered, and
    from then on `ray_address` and `ray_auth_mode` say where and how `lorikeet deploy` joins it. `joined` is the address of the Ray that it
    joined, empty where it started its own: in a joined one Serve, HAProxy included, outlives a supervisor that is killed."""

    run_id: str
    pid: int
    started_at: float  # of the process, seconds since the epoch: tells it from a later process with its pid
    url: str
    config: str | None
    overrides: tuple[str, ...]
    ready_at: float | None = None
    ray_address: str = ""
    ray_auth_mode: str = ""
    joined: str = ""

    @classmethod
    def begin(cls, url: str, config: Path | None, overrides: tuple[str, ...], joined: str = "") -> Run:
        """The run of this very process."""
        started_at = psutil.Process().create_time()
        at = str(config.absolute()) if config else None
        return cls(secrets.token_hex(8), os.getpid(), started_at, url, at, overrides, joined=joined)

    @property
    def lives(self) -> bool:
        return lives_since(self.pid, self.started_at)

    def ready(self, ray_address: str, ray_auth_mode: str) -> Run:
        return dataclasses.replace(self, ready_at=time.time(), ray_address=ray_address, ray_auth_mode=ray_auth_mode)


def read(home: Path) -> Run | None:
    """The last run of this home, living or not; None if it ended cleanly."""
    try:
        fields = json.loads((home / "run.json").read_text(encoding="utf-8"))
        return Run(**{**fields, "overrides": tuple(fields["overrides"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write(home: Path, run: Run) -> None:
    """Replace `run.json` whole, so that a reader never sees half of it."""
    write_private(home / "run.json", json.dumps(dataclasses.asdict(run), indent=2) + "\n")


def remove(home: Path) -> None:
    (home / "run.json").unlink(missing_ok=True)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def exclusive(home: Path) -> Iterator[None]:
    """Hold the home for this process; the system lets go of it when the process dies, however that happens.

    Raises:
        AlreadyRunning: another supervisor holds it.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / "run.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            run = read(home)
            who = f"pid {run.pid}, {run.url}" if run else "it is just starting"
            raise AlreadyRunning(
                f"lorikeet is already up in {home} ({who}): stop it with `lorikeet down`, or set another home= and gateway.port="
            ) from None
        yield
