"""Lines that tests say at the end of a run, below pytest's own summary of it: what they counted and measured.

    def test_…(report: Report) -> None: report("5 of 5 requests answered")

A passing test's output is hidden, and its numbers are worth seeing. They are in a JUnit report too, as properties.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

Report = Callable[[str], None]

LINES = pytest.StashKey[list[str]]()


@pytest.fixture
def report(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Report:
    """Say a line about the test that asks for this."""
    lines = request.config.stash.setdefault(LINES, [])

    def say(line: str) -> None:
        record_property("report", line)
        lines.append(f"{request.node.name}: {line}")

    return say


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.get(LINES, [])
    if lines:
        terminalreporter.section("what was counted")
        for line in lines:
            terminalreporter.write_line(line)
