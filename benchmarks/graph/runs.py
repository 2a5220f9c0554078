"""Train on real graphs, seed by seed, and gather results that say how they spread."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gsdist.reducers import DenseConfig, GsSgdConfig, GsSgdPaperConfig, ReducerConfig
from gsdist.training import RunConfig, RunSummary, TrainConfig, Trainer
from gsdist.workloads.graph import GraphConfig, LinkWorkload, NodeConfig, NodeWorkload, preset

__all__ = ["COMPRESSION", "MODELS", "compression_runs", "link_runs", "model_runs", "rows_of"]

MODELS = ("mv-hetgnn", "r-gcn", "hgt", "han")
_LOCAL = {"exchange_regulariser": False}
_EXCHANGED = {"exchange_regulariser": True}
_TABLES = 20_000
"""Entries above which a parameter of MV-HetGNN is a table of nodes or features, not shared by all."""
_DIRECTIONS = GsSgdConfig(compression=10)
_COORDINATES = GsSgdPaperConfig(density=0.011, warmup_steps=0)
COMPRESSION: Mapping[str, tuple[ReducerConfig, Mapping[str, Any]]] = {
    "dense": (DenseConfig(), _LOCAL),
    "gs-sgd": (replace(_DIRECTIONS, min_numel=_TABLES), _LOCAL),
    "gs-sgd, all sketched": (_DIRECTIONS, _LOCAL),
    "gs-sgd, all sketched, regulariser exchanged too": (_DIRECTIONS, _EXCHANGED),
    "gs-sgd-paper": (replace(_COORDINATES, density=0.006, min_numel=_TABLES), _LOCAL),
    "gs-sgd-paper, all sketched": (_COORDINATES, _LOCAL),
    "gs-sgd-paper, all sketched, regulariser exchanged too": (_COORDINATES, _EXCHANGED),
}
"""Exchange method and settings of the workload, of the comparison at 10x."""


def model_runs(
    models: Sequence[str], seeds: Sequence[int], data: str, folder: Path, **training: Any
) -> Iterator[tuple[str, RunSummary]]:
    """Train every model with the same settings and steps; yield name and summary."""
    workload_settings, _ = preset("mv-hetgnn", data)
    for seed in seeds:
        for model in models:
            config = NodeConfig(**workload_settings, model=model)
            run = _run(
                "mv-hetgnn", config, DenseConfig(), seed, folder / f"{model}-{seed}", training
            )
            yield model, Trainer(run, NodeWorkload(config)).run()


def link_runs(
    seeds: Sequence[int], data: str, folder: Path, **training: Any
) -> Iterator[tuple[str, RunSummary]]:
    """Train link prediction; yield its name and summary."""
    workload_settings, _ = preset("mv-hetgnn-links", data)
    for seed in seeds:
        config = GraphConfig(**workload_settings)
        run = _run("mv-hetgnn-links", config, DenseConfig(), seed, folder / f"{seed}", training)
        yield "mv-hetgnn", Trainer(run, LinkWorkload(config)).run()


def compression_runs(
    methods: Sequence[str], seeds: Sequence[int], data: str, folder: Path, **training: Any
) -> Iterator[tuple[str, RunSummary]]:
    """Train with each exchange method on the ranks of this job; yield method and summary."""
    workload_settings, _ = preset("mv-hetgnn", data)
    for seed in seeds:
        for method in methods:
            reducer, settings = COMPRESSION[method]
            config = NodeConfig(**workload_settings, **settings)
            place = folder / f"{method.replace(', ', '-').replace(' ', '-')}-{seed}"
            run = _run("mv-hetgnn", config, reducer, seed, place, training)
            yield method, Trainer(run, NodeWorkload(config)).run()


def rows_of(results: Mapping[str, Sequence[RunSummary]]) -> dict[str, dict[str, Any]]:
    """Return, per name, mean and standard deviation of every metric, and what the runs cost."""
    rows: dict[str, dict[str, Any]] = {}
    for name, runs in results.items():
        values = {metric: [run.metrics[metric] for run in runs] for metric in runs[0].metrics}
        rows[name] = {
            "seeds": [run.config["train"]["seed"] for run in runs],
            "steps": runs[0].steps,
            "parameters": runs[0].num_parameters,
            "compression": statistics.fmean(run.compression for run in runs),
            "mean": {metric: statistics.fmean(found) for metric, found in values.items()},
            "sd": {
                metric: statistics.stdev(found) if len(found) > 1 else None
                for metric, found in values.items()
            },
            "values": values,
        }
    return rows


def _run(
    name: str,
    config: NodeConfig | GraphConfig,
    reducer: ReducerConfig,
    seed: int,
    folder: Path,
    training: Mapping[str, Any],
) -> RunConfig:
    _, train_settings = preset(name, config.data)
    train = TrainConfig(**{**train_settings, **training}, seed=seed, run_dir=folder, progress=False)
    return RunConfig(train=train, reducer=reducer, workload_name=name, workload=config)
