"""Plots of one run: throughput, time to first token and time per output token against requests at a time, a line a stack."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.load import Measurement

_PLOTS = {
    "throughput": ("tokens_per_second", "streamed tokens per second"),
    "ttft": ("ttft_p50_ms", "time to first token, p50 (ms)"),
    "tpot": ("tpot_p50_ms", "time per output token, p50 (ms)"),
}


def draw(measurements: Sequence[Measurement], folder: Path, date: str) -> list[Path]:
    """Write one PNG for each plot; returns them. Points are medians over the rounds, bars reach from the lowest to the highest."""
    import matplotlib

    matplotlib.use("Agg")  # no screen
    from matplotlib import pyplot
    from matplotlib.ticker import ScalarFormatter

    streamed = [found for found in measurements if found.ttft_p50_ms is not None]
    if not streamed:
        return []
    sizes = sorted({found.at_once for found in streamed})
    written = []
    for name, (field, label) in _PLOTS.items():
        figure, axes = pyplot.subplots(figsize=(7.0, 4.5), layout="constrained")
        for stack in dict.fromkeys(found.stack for found in streamed):
            points = [(size, values) for size in sizes if (values := _values(streamed, stack, size, field))]
            middle = [statistics.median(values) for _, values in points]
            below = [at - min(values) for at, (_, values) in zip(middle, points, strict=True)]
            above = [max(values) - at for at, (_, values) in zip(middle, points, strict=True)]
            axes.errorbar([size for size, _ in points], middle, yerr=[below, above], marker="o", capsize=3, label=stack)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log" if name == "ttft" else "linear")
        axes.set_xticks(sizes)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_xlabel("requests at a time")
        axes.set_ylabel(label)
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
        path = folder / f"{date}-{name}.png"
        figure.savefig(path, dpi=120)
        pyplot.close(figure)
        written.append(path)
    return written


def _values(measurements: Sequence[Measurement], stack: str, at_once: int, field: str) -> list[float]:
    return [float(getattr(found, field)) for found in measurements if (found.stack, found.at_once) == (stack, at_once)]
