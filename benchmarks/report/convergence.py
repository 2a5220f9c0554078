"""Show accuracy against bytes, and the loss on its way, from results of the convergence benchmark."""

from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from benchmarks.report.parts import Figure, Section, Table
from gsdist.training.plots import colours, draw_svg

__all__ = ["convergence_section"]

_DENSE = "dense"
_SMOOTHED_STEPS = 20
_HEAD = ("method", "budget", "seeds", "compression", "accuracy %", "minus dense", "loss")

_Entries = Sequence[Mapping[str, Any]]


def convergence_section(result: Mapping[str, Any]) -> Section:
    """Return the section of a result: means over seeds, and curves where methods share a density."""
    tables, figures = [], []
    for workers, entries in _by_workers(result["summary"]):
        tables.append(_table(workers, entries))
        figures.append(_frontier(workers, entries))
    if result.get("density") is not None:
        for workers, rows in _by_workers(result["rows"]):
            first = [row for row in rows if row["seed"] == rows[0]["seed"]]
            figures += [_curves(workers, first, by_bytes=by_bytes) for by_bytes in (False, True)]
    training = result["training"]
    bound = training.get("clip_norm")  # results from before it existed lack it
    clipped = "" if bound is None else f", gradients clipped to norm {bound:g}"
    text = (
        f"{training['workload']}, {training['steps']} steps, global batch {training['global_batch']}"
        f"{clipped}. "
        "Compression is that of the busiest link over the whole run, warm-up included; after +- stands "
        "the standard error of the mean over seeds, differences to dense are paired by seed."
    )
    return Section(
        title="Accuracy by bytes of the whole run", text=text, tables=tables, figures=figures
    )


def _by_workers(entries: _Entries) -> list[tuple[int, _Entries]]:
    ordered = sorted(entries, key=lambda entry: entry["workers"])  # stable: the order within stays
    return [(p, list(group)) for p, group in groupby(ordered, key=lambda e: e["workers"])]


def _table(workers: int, entries: _Entries) -> Table:
    rows = [
        [
            entry["method"],
            f"{entry['budget']:g}",
            str(entry["seeds"]),
            f"{entry['wire_compression']:.1f}",
            _percent(entry, "accuracy"),
            "" if entry["method"] == _DENSE else _percent(entry, "accuracy_minus_dense", sign="+"),
            "-" if entry["loss"] is None else f"{entry['loss']:.3f}",
        ]
        for entry in entries
    ]
    return Table(title=f"{workers} workers", head=_HEAD, rows=rows)


def _percent(entry: Mapping[str, Any], name: str, sign: str = "") -> str:
    if entry[name] is None:
        return "-"
    error = entry[f"{name}_standard_error"]
    return f"{100 * entry[name]:{sign}.1f}" + ("" if error is None else f" +- {100 * error:.1f}")


def _frontier(workers: int, entries: _Entries) -> Figure:
    methods = {e["method"]: [o for o in entries if o["method"] == e["method"]] for e in entries}
    dense = methods.pop(_DENSE, [])

    def draw(axes: Axes) -> None:
        for entry in dense:
            axes.axhline(100 * entry["accuracy"], linestyle=":", label=_DENSE, color="#8a8f98")
        for (method, points), colour in zip(methods.items(), colours(len(methods)), strict=True):
            points = sorted(points, key=lambda entry: entry["wire_compression"])
            axes.errorbar(
                [entry["wire_compression"] for entry in points],
                [100 * entry["accuracy"] for entry in points],
                yerr=[100 * (entry["accuracy_standard_error"] or 0) for entry in points],
                fmt="o-",
                markersize=3,
                label=method,
                color=colour,
            )
        axes.set_xscale("log")
        axes.set_xlabel("compression of the busiest link, whole run")
        axes.set_ylabel("accuracy %")
        axes.legend(fontsize=6, ncols=2)

    title = f"{workers} workers"
    return Figure(title=title, svg=draw_svg(draw, name=f"convergence {workers}"))


def _curves(workers: int, rows: _Entries, *, by_bytes: bool) -> Figure:
    def draw(axes: Axes) -> None:
        for row, colour in zip(rows, colours(len(rows)), strict=True):
            loss = [np.nan if value is None else value for value in row["curves"]["loss"]]
            position = row["curves"]["bytes"] if by_bytes else range(len(loss))
            ends = range(0, len(loss) + 1, _SMOOTHED_STEPS)
            axes.plot(
                [position[end - 1] for end in ends[1:]],
                [float(np.mean(loss[start:end])) for start, end in pairwise(ends)],
                label=row["method"],
                color=colour,
            )
        if by_bytes:
            axes.set_xscale("log")
        axes.set_xlabel("bytes on the busiest link" if by_bytes else "steps")
        axes.set_ylabel(f"training loss, means of {_SMOOTHED_STEPS} steps")
        axes.legend(fontsize=6)

    x = "bytes" if by_bytes else "steps"
    title = f"{workers} workers: loss by {x}, the same share of the coordinates"
    return Figure(title=title, svg=draw_svg(draw, name=f"curves {workers} {x}"))
