"""What serves under test finds no other packages than it has at a user's: those of the serving lock, without the development lock's more.

Otherwise a package that only tests need is there whenever serving is tested, and missing at everybody's first `make run`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
HIDER = Path(__file__).parent / "serving_only"


def serving_environment() -> dict[str, str]:
    """Environment of a process that serves, and of all that it starts."""
    path = os.pathsep.join(filter(None, (str(HIDER), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "LORIKEET_HIDDEN_PACKAGES": ",".join(sorted(hidden_packages()))}


def hidden_packages() -> frozenset[str]:
    """Import names of what the development lock has and the serving lock has not."""
    extra = _locked("dev") - _locked("cpu")
    named: Mapping[str, list[str]] = packages_distributions()
    return frozenset(package for package, owners in named.items() if {_plain(owner) for owner in owners} <= extra)


def _locked(lock: str) -> set[str]:
    text = (ROOT / "requirements" / f"{lock}.txt").read_text()
    return {_plain(name) for name in re.findall(r"^([A-Za-z0-9._-]+)==", text, re.MULTILINE)}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
