"""The plot of docs/background/performance.md, legible on white and on black."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot as plt

GREY = "#808a94"  # on white and on black alike, 3.5:1 or better
OURS = "#2f81f7"


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw what a call costs, and CPU for an event, as bars with their quartiles."""
    call = {
        name: figures["microseconds"]
        for name, figures in results["call_cost"]["0.2"].items()
        if not name.startswith("structlog")
    }
    cpu = {
        name: figures["microseconds"]
        for name, figures in results["cpu_per_event"].items()
        if name != "emit in the call"  # a request for each event: it would dwarf the others
    }
    mpl.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "lorc_eventlog",
            "font.family": "sans-serif",
            "text.color": GREY,
            "axes.labelcolor": GREY,
            "axes.edgecolor": GREY,
            "xtick.color": GREY,
            "ytick.color": GREY,
        }
    )
    figure, axes = plt.subplots(2, 1, figsize=(5.6, 5.8), layout="constrained")
    _bars(axes[0], "Time of one log call, in millionths of a second", call)
    _bars(axes[1], "CPU time for one event, in millionths of a second", cpu)
    figure.savefig(path, format="svg", transparent=True, metadata={"Date": None})
    plt.close(figure)


def _bars(axes: Any, title: str, arms: dict[str, list[float]]) -> None:
    names = list(reversed(arms))
    medians = [arms[name][0] for name in names]
    below = [arms[name][0] - arms[name][1] for name in names]
    above = [arms[name][2] - arms[name][0] for name in names]
    colours = [OURS if name == "lorc_eventlog" else GREY for name in names]
    axes.barh(names, medians, color=colours, xerr=[below, above], ecolor="#c9872c", capsize=2)
    for index, (median, high) in enumerate(zip(medians, above, strict=True)):
        axes.text(median + high, index, f"  {median:.0f}", va="center")
    axes.set_title(title, fontsize=10, loc="left", color=GREY)
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
