"""Make tables and plots of what the planner predicts: against measurement, and beyond it."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from benchmarks.report.parts import Figure, Section, Table
from gsdist.training.plots import colours, draw_svg

__all__ = ["plan_section", "what_if_section"]


def plan_section(result: Mapping[str, Any]) -> Section:
    """Show every predicted cell beside its measurement, and what would have been chosen."""
    cells, choices = result["predicted_cells"], result["choices"]
    near = sum(abs(cell["error"]) <= 0.2 for cell in cells)
    best = sum(choice["over_best"] <= 1.1 for choice in choices)
    return Section(
        title="Prediction against measurement",
        text=f"{near} of {len(cells)} cells within 20 %; choice within 10 % of the best time to quality in "
        f"{best} of {len(choices)} settings. Time to quality is time times step factor.",
        tables=[_choices(choices), _cells(cells)],
        figures=[_scatter(cells)],
    )


def _choices(choices: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [
            f"{choice['model']}, {choice['ranks']} workers, {choice['rate']}",
            choice["chosen"],
            choice["best"],
            f"{choice['over_best']:.2f}",
            f"{choice['over_dense_bf16']:.2f}" if choice["over_dense_bf16"] else "",
            f"{choice['over_dense_bf16_low']:.2f} - {choice['over_dense_bf16_high']:.2f}"
            if choice["over_dense_bf16"]
            else "",
            choice["file"],
        ]
        for choice in choices
    ]
    head = ["setting", "chosen", "best", "over best", "over dense-bf16", "interval", "file"]
    return Table(title="What would have been chosen", head=head, rows=rows)


def _cells(cells: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [
            f"{cell['model']}, {cell['ranks']} workers, {cell['rate']}",
            cell["method"],
            f"{1e3 * cell['measured_seconds']:.1f}",
            f"{1e3 * cell['p10_seconds']:.1f} - {1e3 * cell['p90_seconds']:.1f}",
            f"{1e3 * cell['predicted_seconds']:.1f}",
            f"{cell['error']:+.0%}",
        ]
        for cell in sorted(cells, key=lambda cell: -abs(cell["error"]))
    ]
    head = ["setting", "method", "ms", "10 - 90 %", "predicted ms", "error"]
    return Table(title="Every cell, the worst first", head=head, rows=rows)


def _scatter(cells: Sequence[Mapping[str, Any]]) -> Figure:
    models = sorted({cell["model"] for cell in cells})

    def draw(axes: Axes) -> None:
        for model, colour in zip(models, colours(len(models)), strict=True):
            points = [
                (1e3 * cell["measured_seconds"], 1e3 * cell["predicted_seconds"])
                for cell in cells
                if cell["model"] == model
            ]
            axes.loglog(*zip(*points, strict=True), "o", label=model, color=colour, markersize=3)
        ends = [1e3 * pick(c["measured_seconds"] for c in cells) for pick in (min, max)]
        for factor in (0.8, 1.0, 1.2):
            axes.loglog(ends, [factor * end for end in ends], color="grey", linewidth=0.6)
        axes.set_xlabel("measured ms")
        axes.set_ylabel("predicted ms")
        axes.legend(fontsize=6)

    return Figure(title="all cells; lines: 20 % off", svg=draw_svg(draw, name="prediction"))


def what_if_section(result: Mapping[str, Any]) -> Section:
    """Draw projected time to quality over each axis, and name where the choice changes."""
    rows = [
        [sweep["axis"], one["below"], f"{one['at']:.3g} {sweep['unit']}".strip(), one["above"]]
        for sweep in result["sweeps"]
        for one in sweep["crossings"]
    ]
    return Section(
        title="What the planner projects",
        text=f"Projection, not measurement, around {result['centre']}. Time to dense quality over that of "
        "dense bfloat16; below 1 a method wins.",
        tables=[
            Table(
                title="Where the choice changes", head=["axis", "below", "at", "above"], rows=rows
            )
        ],
        figures=[_sweep(sweep) for sweep in result["sweeps"]],
    )


def _sweep(sweep: Mapping[str, Any]) -> Figure:
    def draw(axes: Axes) -> None:
        curves = sweep["curves"]
        for (method, ratios), colour in zip(curves.items(), colours(len(curves)), strict=True):
            axes.loglog(sweep["values"], ratios, label=method, color=colour)
        for one in sweep["crossings"]:
            axes.axvline(one["at"], color="grey", linewidth=0.6)
        axes.set_xlabel(f"{sweep['axis']} {sweep['unit']}".strip())
        axes.set_ylabel("time to quality over dense-bf16")
        axes.legend(fontsize=6, ncols=2)

    return Figure(title=f"over {sweep['axis']}", svg=draw_svg(draw, name=f"sweep {sweep['axis']}"))
