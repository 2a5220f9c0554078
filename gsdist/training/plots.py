"""Draw the plots of a report as SVG that takes its colours from the page."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from gsdist.training.summary import EXCHANGE, RunSummary

__all__ = [
    "colours",
    "draw_bars",
    "draw_curves",
    "draw_groups",
    "draw_svg",
    "phase_names",
    "phase_seconds",
]

_INK = "#010203"
"""Stands for the page's text colour, which depends on its light or dark mode."""
_COLOURS = (
    *("#3a7fd5", "#e0782f", "#3aa57a", "#b35fc9", "#c9a227", "#d14d57"),
    *("#7fb2ea", "#f0b183", "#86cfb3", "#d6a5e2", "#8a8f98", "#6b4f3a"),
    *("#5a5fb8", "#a3bf5a", "#e58fb0", "#2f8086"),
)
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.2,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
} | dict.fromkeys(
    ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"),
    _INK,
)
_SIZE = (4.4, 2.9)
_MEBIBYTE = 2**20
_FIRST_PHASES = ("data", "forward", "backward", "compensate", "encode")
_LAST_PHASES = ("apply", "optimizer")


def draw_curves(
    labelled: Sequence[tuple[str, RunSummary]],
    *,
    kind: str,
    x: str,
    y: str,
    axes_labels: tuple[str, str],
) -> str:
    """Draw one recorded quantity against another, a line per run; return the SVG element.

    `kind` is "train" or "evaluation"; quantities whose name ends in "bytes" are drawn in MiB.
    """

    def draw(axes: Axes) -> None:
        for (label, run), colour in zip(labelled, colours(len(labelled)), strict=True):
            curves = run.curves.get(kind, {})
            if x in curves and y in curves and any(curves[y]):
                marker = "o" if len(curves[y]) < 12 else None
                axes.plot(
                    _scaled(x, curves[x]),
                    _scaled(y, curves[y]),
                    label=label,
                    color=colour,
                    marker=marker,
                    markersize=3,
                )
        axes.set_xlabel(axes_labels[0])
        axes.set_ylabel(axes_labels[1])
        if x.endswith("bytes"):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
        if axes.lines:
            axes.legend()

    return draw_svg(draw, name=f"{kind} {x} {y}")


def draw_bars(labelled: Sequence[tuple[str, RunSummary]]) -> str:
    """Draw where the milliseconds of a step went, a stacked bar per run; return the SVG element."""
    split = [phase_seconds(run) for _, run in labelled]
    phases = phase_names(split)

    def draw(axes: Axes) -> None:
        starts = [0.0] * len(labelled)
        for phase, colour in zip(phases, colours(len(phases)), strict=True):
            widths = [
                1e3 * seconds.get(phase, 0.0) / max(1, run.steps)
                for seconds, (_, run) in zip(split, labelled, strict=True)
            ]
            axes.barh(
                range(len(labelled)), widths, left=starts, label=phase, color=colour, height=0.55
            )
            starts = [start + width for start, width in zip(starts, widths, strict=True)]
        axes.set_yticks(range(len(labelled)), [label for label, _ in labelled])
        axes.invert_yaxis()
        axes.set_xlabel("milliseconds per step")
        axes.grid(axis="y", visible=False)
        axes.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.45, 1.0), fontsize=8)

    return draw_svg(draw, name="phases")


def draw_groups(picture: Mapping[str, Any], *, name: str) -> str:
    """Draw points in the plane, a colour per group; return the SVG element.

    `picture` is that of a `RunSummary`.
    """
    groups = sorted(set(picture["group"]))

    def draw(axes: Axes) -> None:
        for group, colour in zip(groups, colours(len(groups)), strict=True):
            chosen = [place for place, own in enumerate(picture["group"]) if own == group]
            axes.scatter(
                [picture["x"][place] for place in chosen],
                [picture["y"][place] for place in chosen],
                s=5,
                color=colour,
                label=str(group),
                linewidths=0,
            )
        axes.set_xticks([])
        axes.set_yticks([])
        axes.legend(title="class", fontsize=7)

    return draw_svg(draw, name=f"groups {name}")


def phase_seconds(run: RunSummary) -> dict[str, float]:
    """Split the training time of a run into phases that do not overlap.

    The exchange runs in a thread of its own while backward waits for it at the end, so its phases are taken
    out of "backward"; where they overlap with computing, that part is counted as exchange.
    """
    seconds = {name.removeprefix(EXCHANGE): value for name, value in run.phase_seconds.items()}
    exchange = sum(run.exchange_seconds)
    seconds["backward"] = max(0.0, seconds.get("backward", 0.0) - exchange)
    seconds.pop("evaluate", None)  # no part of a step
    return seconds


def phase_names(split: Sequence[Mapping[str, float]]) -> list[str]:
    """Return all phases of some runs in the order of a step; those of the exchange in the middle."""
    found = dict.fromkeys(name for seconds in split for name in seconds)
    ends = (*_FIRST_PHASES, *_LAST_PHASES)
    middle = [name for name in found if name not in ends]
    return [name for name in (*_FIRST_PHASES, *middle, *_LAST_PHASES) if name in found]


def draw_svg(draw: Callable[[Axes], None], *, name: str) -> str:
    """Let a function draw on axes and return the SVG element; `name` is unique on its page."""
    # A salt per figure keeps the ids of clip paths apart on the common page.
    with matplotlib.rc_context(_STYLE), matplotlib.rc_context({"svg.hashsalt": name}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        figure.patch.set_alpha(0.0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0.0)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    return re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text)
    )


def colours(count: int) -> list[str]:
    """Return colours for a number of series, readable in light and dark mode."""
    return [_COLOURS[i % len(_COLOURS)] for i in range(count)]


def _scaled(name: str, values: Sequence[float]) -> list[float]:
    unit = _MEBIBYTE if name.endswith("bytes") else 1
    return [value / unit for value in values]
