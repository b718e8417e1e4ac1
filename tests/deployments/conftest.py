"""A gateway's app, for the tests of its routes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.deployments.gateway import Gateway, gateway


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with gateway(tmp_path) as running:
        yield running
