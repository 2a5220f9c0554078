"""Show results of pruning."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from benchmarks.report.parts import Section, Table

__all__ = ["pruning_section"]


def pruning_section(result: Mapping[str, Any]) -> Section:
    """Return the section of a result of benchmarks.pruning: --toy, --speed or --calibrate."""
    rows = result["rows"]
    if "compact_accuracy" in rows[0]:
        return _comparison(rows, result["setting"])
    if "speedup" in rows[0]:
        return _speed(rows)
    return _calibration(rows)


def _comparison(rows: Sequence[Mapping[str, Any]], setting: Mapping[str, Any]) -> Section:
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        accuracies = [row["compact_accuracy"] for row in own]
        lines.append(
            [
                method,
                " / ".join(f"{value:.2f}" for value in accuracies),
                f"{fmean(accuracies):.2f}",
                f"{stdev(accuracies):.2f}" if len(own) > 1 else "",
                *(
                    f"{fmean(row[name] for row in own):.{digits}f}"
                    for name, digits in (("macs_ratio", 3), ("params_ratio", 3), ("compression", 1))
                ),
            ]
        )
    head = ["method", "seeds, %", "mean", "sd", "operations left", "parameters left", "compression"]
    workers = setting["workers"]
    return Section(
        title="Pruning by every method" + (f", {workers} workers, gs-SGD" if workers > 1 else ""),
        text=f"Accuracy of the compact network; {setting['images']:,} images of Fashion-MNIST, "
        f"{setting['epochs']} epochs.",
        tables=[Table(title="", head=head, rows=lines)],
    )


def _speed(rows: Sequence[Mapping[str, Any]]) -> Section:
    table = Table(
        title="",
        head=["network", "layout", "operations left", "parameters left", "times faster"],
        rows=[
            [
                row["model"],
                row["layout"],
                *(f"{row[name]:.3f}" for name in ("macs_ratio", "params_ratio")),
                f"{row['speedup']:.2f}",
            ]
            for row in rows
        ],
    )
    text = "Compact networks against dense ones on one thread, fastest of several in turns."
    return Section(title="Pruning: real speed", text=text, tables=[table])


def _calibration(rows: Sequence[Mapping[str, Any]]) -> Section:
    models = list(dict.fromkeys(row["model"] for row in rows))
    pairs: dict[tuple[float, float], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        pairs.setdefault((row["cost_weight"], row["size_weight"]), {})[row["model"]] = row
    table = Table(
        title="",
        head=["weight of operations", "of parameters", *models],
        rows=[
            [
                *(f"{weight:g}" for weight in weights),
                *(
                    f"{found[m]['flops']:.1f} M ({found[m]['deviation']:+.0%})"
                    f"{' within' if found[m]['accepted'] else ''}"
                    for m in models
                ),
            ]
            for weights, found in pairs.items()
        ],
    )
    text = "Operations at the published number of parameters, and how far they are from the published ones."
    return Section(title="CPMC: two free weights", text=text, tables=[table])
