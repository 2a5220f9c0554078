"""Put results of runs on CIFAR-100 beside the published ones.

Published are means and standard deviations of top-1 accuracy from the HSAKD repository (slides and
README); "baseline" is the student trained alone. Published rows report the better of all epochs or the
last one as their authors chose; ours give both.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from gsdist.training import RunSummary
from gsdist.workloads.distillation.presets import PAIRS

__all__ = ["PUBLISHED", "Row", "compare", "table"]

_METHODS = ("baseline", "kd", "crd", "sskd", "hsakd", "hsakd*")
_ACCURACIES = {
    "wrn40-2:wrn16-2": ("73.57 .23", "75.23", "75.81", "76.16", "77.20 .17", "78.67 .20"),
    "wrn40-2:wrn40-1": ("71.95 .59", "73.90", "74.76", "75.84", "77.00 .21", "78.12 .25"),
    "resnet56:resnet20": ("69.62 .26", "70.91", "71.83", "70.80", "72.58 .33", "73.73 .10"),
    "resnet32x4:resnet8x4": ("72.95 .24", "73.54", "75.77", "75.83", "77.26 .14", "77.69 .05"),
    "vgg13:mobilenetv2": ("73.51 .26", "75.21", "76.13", "76.21", "77.45 .21", "79.27 .12"),
    "resnet50:mobilenetv2": ("73.51 .26", "75.80", "76.89", "78.21", "78.79 .11", "79.43 .24"),
    "wrn40-2:shufflenetv1": ("71.74 .35", "75.83", "76.37", "76.71", "78.51 .20", "80.11 .32"),
    "resnet32x4:shufflenetv2": ("72.96 .33", "75.43", "76.51", "77.64", "79.93 .11", "80.86 .15"),
}
PUBLISHED = {pair: dict(zip(_METHODS, row, strict=True)) for pair, row in _ACCURACIES.items()}
"""Accuracy in percent, and its spread where given, by pair and method; "hsakd*" has a joint teacher."""
_COMPARABLE = {"classification": "baseline", "kd": "kd", "hsakd-student": "hsakd*"}
"""The published row of a workload, of hsakd-student that with a jointly trained teacher."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Hold the runs of one workload on one pair of networks."""

    pair: str
    workload: str
    seeds: list[int]
    last: list[float]
    best: list[float]

    @property
    def published(self) -> str:
        """Return what is published of it, or a dash."""
        return PUBLISHED.get(self.pair, {}).get(_COMPARABLE.get(self.workload, ""), "-")


def compare(runs: Iterable[RunSummary]) -> list[Row]:
    """Group runs by networks and workload; accuracies are in percent."""
    groups: dict[tuple[str, str], list[RunSummary]] = defaultdict(list)
    for run in runs:
        settings = run.config["workload"]
        teacher, student = settings.get("teacher"), settings["model"]
        names = [
            name
            for name, known in PAIRS.items()
            if known.student == student and teacher in (None, known.teacher)
        ]
        if names and settings["data"] == "cifar100":
            pair = names[0]
        else:
            pair = f"{teacher or '-'}:{student} {settings['data']}"
        groups[pair, run.workload].append(run)
    return [
        Row(
            pair=pair,
            workload=workload,
            seeds=sorted(run.config["train"]["seed"] for run in members),
            last=[100 * run.primary for run in members],
            best=[100 * max(run.curves["evaluation"][run.primary_metric]) for run in members],
        )
        for (pair, workload), members in groups.items()
    ]


def table(rows: Iterable[Row]) -> str:
    """Print ours beside the published, accuracies as mean and spread."""
    lines = [
        f"{'networks':32}{'workload':16}{'last':>14}{'best':>14}{'published':>12}  seeds",
    ]
    for row in rows:
        seeds = ",".join(map(str, row.seeds))
        lines.append(
            f"{row.pair:32}{row.workload:16}{_spread(row.last):>14}{_spread(row.best):>14}"
            f"{row.published:>12}  {seeds}"
        )
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    mean = f"{statistics.fmean(values):.2f}"
    return f"{mean} sd {statistics.stdev(values):.2f}" if len(values) > 1 else mean
