"""Make the rows of the table, keep finished ones, and sum them up."""

import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import groupby, product
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks import environment
from benchmarks.convergence.budgets import Fit, Fitter
from benchmarks.convergence.emulation import MethodConfig
from benchmarks.convergence.methods import DENSE, settings_of
from benchmarks.convergence.run import train
from benchmarks.convergence.workloads import PRESETS, Training, open_workload
from gsdist.reducers import DenseConfig, GsSgdConfig, SparseConfig

__all__ = ["Cell", "Row", "cells", "keep", "rows_of", "summarize"]

ROW_VERSION = 2
"""Raised when rows made by older code must not be used again."""

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """Name one run; or, without a configuration, why there is none."""

    method: str
    workers: int
    budget: float
    seed: int
    config: MethodConfig | None
    predicted_compression: float = 1.0
    meets_budget: bool = True


def cells(
    training: Training,
    methods: Sequence[str],
    *,
    workers: Sequence[int],
    budgets: Sequence[float],
    seeds: Sequence[int],
    warmup_share: float,
    density: float | None = None,
) -> Iterator[Cell]:
    """Yield the cells of a table: per seed and number of workers dense, then budget by budget.

    With a density, all methods select as many coordinates in place of sending as many bytes, from the
    first step on; a cell's budget is then what its method makes of that.
    """
    parameters = dict(open_workload(training).build_model().named_parameters())
    fitters = {count: Fitter(parameters, workers=count, steps=training.steps) for count in workers}

    @cache
    def fit(method: str, count: int, budget: float) -> Fit:
        optimizer = PRESETS[training.workload].optimizer
        settings = settings_of(method, optimizer)
        # gs-SGD starts with many refreshes, which is all that SGD needs; AdamW's first squares must be whole
        begins_dense = not isinstance(settings, GsSgdConfig) or optimizer == "adamw"
        share = warmup_share if begins_dense else 0.0
        return fitters[count].fit(settings, budget, warmup_share=share)

    @cache
    def at_density(method: str, count: int) -> Fit:
        assert density is not None
        settings = settings_of(method, PRESETS[training.workload].optimizer)
        assert isinstance(settings, SparseConfig), f"{method} selects no coordinates"
        config = replace(settings, density=density, warmup_steps=0)
        compression = fitters[count].compression(config)
        return Fit(config=config, compression=compression, meets=True, runs=True)

    compressed = [method for method in methods if method != DENSE]
    for seed, count in product(seeds, workers):
        yield Cell(method=DENSE, workers=count, seed=seed, budget=1.0, config=DenseConfig())
        for budget, method in product(budgets if density is None else [None], compressed):
            found = at_density(method, count) if budget is None else fit(method, count, budget)
            yield Cell(
                method=method,
                workers=count,
                seed=seed,
                budget=round(found.compression, 2) if budget is None else budget,
                config=found.config if found.runs else None,
                predicted_compression=found.compression,
                meets_budget=found.meets,
            )


def make_row(training: Training, cell: Cell) -> Row:
    """Run a cell."""
    assert cell.config is not None
    start = time.perf_counter()
    results = train(training, cell.config, workers=cell.workers, seed=cell.seed)
    described = environment.describe(1)
    return {
        "method": cell.method,
        "workers": cell.workers,
        "budget": cell.budget,
        "seed": cell.seed,
        "meets_budget": cell.meets_budget,
        "predicted_compression": cell.predicted_compression,
        **results,
        "training": asdict(training),
        "config": asdict(cell.config),
        "seconds": time.perf_counter() - start,
        "made": {name: described[name] for name in ("date", "commit", "dirty", "torch", "cpu")},
    }


def keep(
    folder: Path | None,
    training: Training,
    cell: Cell,
    make: Callable[[Training, Cell], Row] = make_row,
    known: Mapping[str, Row] = MappingProxyType({}),
) -> Row:
    """Return a row that is known or in the folder, or run it and keep it there; without folder, run it."""
    name = _key(asdict(training), asdict(cell.config) if cell.config else None, asdict(cell))
    if name in known:
        return known[name]
    if folder is None:
        return make(training, cell)
    path = folder / f"{name}.json"
    if path.exists():
        row: Row = json.loads(path.read_text())
        return row
    row = make(training, cell)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(row) + "\n")
    unfinished.replace(path)
    return row


def rows_of(reports: Iterable[Path]) -> dict[str, Row]:
    """Return the rows of earlier reports by the key of their settings."""
    rows = [row for path in reports for row in json.loads(path.read_text())["rows"]]
    # rows from before a setting existed were made with what is now its default
    return {_key(asdict(Training(**row["training"])), row["config"], row): row for row in rows}


def _key(training: Mapping[str, Any], config: Any, place: Mapping[str, Any]) -> str:
    """Return a hash of everything a row depends on but the code."""
    settings = {
        "version": ROW_VERSION,
        "training": training,
        "config": config,
        **{name: place[name] for name in ("method", "workers", "budget", "seed")},
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:20]


def summarize(rows: Iterable[Row]) -> list[Row]:
    """Return means over seeds with standard errors, and paired differences to dense training."""
    rows = list(rows)
    dense = {(r["workers"], r["seed"]): r for r in rows if r["method"] == DENSE}

    def place(row: Row) -> tuple[int, float, str]:
        return row["workers"], row["budget"], row["method"]

    summary = []
    for (workers, budget, method), group in groupby(sorted(rows, key=place), key=place):
        seeds = list(group)
        entry: Row = {"method": method, "workers": workers, "budget": budget, "seeds": len(seeds)}
        entry["wire_compression"] = _mean_and_error(seeds, "wire_compression")[0]
        for metric in ("accuracy", "loss"):
            mean, error = _mean_and_error(seeds, metric)
            differences = [_minus(row, dense.get((workers, row["seed"])), metric) for row in seeds]
            difference, difference_error = _mean_and_error(differences, metric)
            entry[metric] = mean
            entry[f"{metric}_standard_error"] = error
            entry[f"{metric}_minus_dense"] = difference
            entry[f"{metric}_minus_dense_standard_error"] = difference_error
        summary.append(entry)
    return summary


def _minus(row: Row, other: Row | None, metric: str) -> Row:
    if other is None or row[metric] is None or other[metric] is None:
        return {metric: None}
    return {metric: row[metric] - other[metric]}


def _mean_and_error(
    rows: Sequence[Mapping[str, Any]], name: str
) -> tuple[float | None, float | None]:
    values = [row[name] for row in rows if row[name] is not None]
    if not values:
        return None, None
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), error
