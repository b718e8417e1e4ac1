"""The bar: drawn on a terminal, nowhere else."""

from __future__ import annotations

import io

from cluster.progress_bar import ProgressBar, drawn


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_is_drawn_on_a_terminal_and_ends_its_line() -> None:
    out = Terminal()
    with ProgressBar(out) as bar:
        bar.update(0, 1000)
        bar.update(1000, 1000)
    assert out.getvalue().startswith("\r[....") and "100%" in out.getvalue() and out.getvalue().endswith("\n")


def test_nothing_is_drawn_in_a_pipe_or_when_told() -> None:
    for out, show in ((io.StringIO(), True), (Terminal(), False)):
        with ProgressBar(out, show=show) as bar:
            bar.update(500, 1000)
            bar.update(1000, 1000)
        assert out.getvalue() == ""


def test_a_bar_says_how_far_how_fast_and_how_long() -> None:
    line = drawn(600_000_000, 1_000_000_000, 50e6)
    assert line == "[##################............]  60%  600.0 of 1000.0 MB  50.0 MB/s  8 s left"
    assert "left" not in drawn(0, 10, 0.0) and "100%" in drawn(0, 0, 0.0)
