"""Show results on heterogeneous graphs."""

from collections.abc import Mapping
from typing import Any

from benchmarks.report.parts import Section, Table

__all__ = ["graph_section"]

_TITLES = {
    "models": "Graphs: models",
    "links": "Graphs: link prediction",
    "compression": "Graphs: compressed gradients",
}
_METRICS = ("macro_f1", "micro_f1", "nmi", "ari", "auc", "ap")


def graph_section(result: Mapping[str, Any]) -> Section:
    """Return the section of a result of benchmarks.graph."""
    rows = result["graph_rows"]
    if result["what"] == "step":
        table = Table(
            title="",
            head=["way", "ms", "processor ms", "times faster"],
            rows=[
                [
                    name,
                    f"{row['milliseconds']:.0f}",
                    f"{row['processor_milliseconds']:.0f}",
                    f"{row['speedup']:.1f}",
                ]
                for name, row in rows.items()
            ],
        )
        text = "Medians of a training step on 16 nodes of a random graph of the size of DBLP, one thread."
        return Section(title="Graphs: a training step", text=text, tables=[table])
    metrics = [name for name in _METRICS if name in next(iter(rows.values()))["mean"]]
    table = Table(
        title="",
        head=["", "seeds", "steps", *(f"{name} %" for name in metrics), "compression"],
        rows=[
            [
                name,
                str(len(row["seeds"])),
                str(row["steps"]),
                *(_spread(row["mean"][metric], row["sd"][metric]) for metric in metrics),
                f"{row['compression']:.1f}",
            ]
            for name, row in rows.items()
        ],
    )
    text = "Mean and standard deviation over seeds, of the weights of the best validation."
    return Section(title=_TITLES[result["what"]], text=text, tables=[table])


def _spread(mean: float, deviation: float | None) -> str:
    shown = f"{100 * mean:.2f}"
    return shown if deviation is None else f"{shown} +- {100 * deviation:.2f}"
