"""Fixtures of the whole suite. Those that start Ray are in tests/system/conftest.py."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

from cluster.embedded import prepare
from tests.report import pytest_terminal_summary, report  # noqa: F401  (found here by pytest)
from tests.serving import serving_environment

# By the clock, hypothesis fails a test of milliseconds on a machine that does other things too.
hypothesis.settings.register_profile("lorikeet", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("lorikeet")


@pytest.fixture(scope="session")
def embedded_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model's folder (read only!). Made once, in half a minute, and kept for the next run.

    It is kept beside pytest's own numbered folders, or under LORIKEET_TEST_CACHE; within --basetemp, which is emptied, it is not kept.
    """
    base = tmp_path_factory.getbasetemp()
    kept = base if request.config.getoption("basetemp") else base.parent
    home = Path(os.environ.get("LORIKEET_TEST_CACHE") or kept / "lorikeet-models")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in serving_environment().items():
            patch.setenv(name, value)
        return prepare(home, lambda line: print(line, flush=True))
