"""Put results of runs beside the published ones.

Published are means and standard deviations of top-1 accuracy from the repositories of HSAKD and MCL
(slides, README, logs); "baseline" is the student trained alone. They report the best epoch or the last one,
and the best or all of the peers, as their authors chose; ours give the last epoch and the best, of peers the
mean.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from gsdist.training import RunSummary
from gsdist.workloads.distillation.presets import PAIRS, PEERS

__all__ = ["PUBLISHED", "Row", "compare", "table"]

_METHODS = ("baseline", "kd", "crd", "sskd", "hsakd", "hsakd*")
_PAIRS = {
    "wrn40-2:wrn16-2": ("73.57 .23", "75.23", "75.81", "76.16", "77.20 .17", "78.67 .20"),
    "wrn40-2:wrn40-1": ("71.95 .59", "73.90", "74.76", "75.84", "77.00 .21", "78.12 .25"),
    "resnet56:resnet20": ("69.62 .26", "70.91", "71.83", "70.80", "72.58 .33", "73.73 .10"),
    "resnet32x4:resnet8x4": ("72.95 .24", "73.54", "75.77", "75.83", "77.26 .14", "77.69 .05"),
    "vgg13:mobilenetv2": ("73.51 .26", "75.21", "76.13", "76.21", "77.45 .21", "79.27 .12"),
    "resnet50:mobilenetv2": ("73.51 .26", "75.80", "76.89", "78.21", "78.79 .11", "79.43 .24"),
    "wrn40-2:shufflenetv1": ("71.74 .35", "75.83", "76.37", "76.71", "78.51 .20", "80.11 .32"),
    "resnet32x4:shufflenetv2": ("72.96 .33", "75.43", "76.51", "77.64", "79.93 .11", "80.86 .15"),
    "resnet34:resnet18": ("69.75", "70.66", "-", "71.62", "72.16", "72.39"),
}
_ONLINE = {
    "wrn40-2": "82.58 .21",
    "wrn40-1": "76.67 .41",
    "resnet56": "78.16 .56",
    "resnet32x4": "84.91 .19",
    "vgg13": "80.44 .05",
    "mobilenetv2": "78.85 .13",
    "shufflenetv1": "78.34 .03",
    "shufflenetv2": "79.98 .12",
}
_MCL = {
    "resnet32": ("72.96 .28", "74.04 .07"),
    "resnet56": ("74.48 .23", "75.74 .16"),
    "wrn16-2": ("74.56 .11", "75.79 .07"),
    "wrn40-2": ("77.51 .42", "78.84 .22"),
    "wrn28-4": ("-", "-"),
    "shufflenetv2": ("73.26 .18", "75.18 .25"),
    "shufflenetv2-half": ("69.55 .22", "70.92 .28"),
}
PUBLISHED = (
    {pair: dict(zip(_METHODS, row, strict=True)) for pair, row in _PAIRS.items()}
    | {f"{name}:{name} hssakd-online": {"online": value} for name, value in _ONLINE.items()}
    | {
        f"{name}:{name} mcl": dict(zip(("2 peers", "4 peers"), row, strict=True))
        for name, row in _MCL.items()
    }
)
"""Accuracy in percent, and its spread where given, by pair and method; "hsakd*" has a joint teacher."""
_COMPARABLE = {
    "classification": ("baseline",),
    "kd": ("kd",),
    "hsakd-student": ("hsakd", "hsakd*"),
    "hssakd-online": ("online",),
    "mcl": ("2 peers", "4 peers"),
}
"""The published rows of a workload."""


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
        known = PUBLISHED.get(self.pair, {})
        names = [name for name in _COMPARABLE.get(self.workload, ()) if name in known]
        if len(names) == 1:
            return known[names[0]]
        return ", ".join(f"{name} {known[name]}" for name in names) or "-"


def compare(runs: Iterable[RunSummary]) -> list[Row]:
    """Group runs by networks and workload; accuracies are in percent."""
    groups: dict[tuple[str, str], list[RunSummary]] = defaultdict(list)
    for run in runs:
        groups[_pair_of(run), run.workload].append(run)
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


def _pair_of(run: RunSummary) -> str:
    """Name a run's networks as published, or otherwise by what they are."""
    settings = run.config["workload"]
    teacher, student, data = settings.get("teacher"), settings["model"], settings.get("data")
    if run.workload in PEERS:
        short = {model: name for name, (model, _) in PEERS[run.workload].items()}.get(student)
        if short is not None and data == "cifar100":
            return f"{short}:{short} {run.workload}"
        return f"{student}:{student} {data}"
    for name, known in PAIRS.items():
        if (known.student, known.data) == (student, data) and teacher in (None, known.teacher):
            return name
    return f"{teacher or '-'}:{student} {data}"


def table(rows: Iterable[Row]) -> str:
    """Print ours beside the published, accuracies as mean and spread."""
    lines = [
        f"{'networks':32}{'workload':16}{'last':>14}{'best':>14}  {'seeds':10}published",
    ]
    for row in rows:
        seeds = ",".join(map(str, row.seeds))
        lines.append(
            f"{row.pair:32}{row.workload:16}{_spread(row.last):>14}{_spread(row.best):>14}"
            f"  {seeds:10}{row.published}"
        )
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    mean = f"{statistics.fmean(values):.2f}"
    return f"{mean} sd {statistics.stdev(values):.2f}" if len(values) > 1 else mean
