"""The command, and a gateway's whole app to talk to."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import cli
from tests.cluster.command import Command, Done
from tests.cluster.live_gateway import LiveGateway, live_gateway


@pytest.fixture
def lorikeet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command in this process (a new one costs a second), with a home of its own."""
    for name in [name for name in os.environ if name.startswith("LORIKEET_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LORIKEET_HOME", str(tmp_path))

    def run(*words: str, **environment: str) -> Done:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["lorikeet", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Done(int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[LiveGateway]:
    """The real app over the store of the command's home, behind HTTP."""
    with live_gateway(tmp_path) as running:
        yield running
