"""Train a workload: `gsdist train WORKLOAD`."""

import dataclasses
import json
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from gsdist.errors import CheckpointError, ConfigError
from gsdist.reducers import REDUCER_CONFIGS
from gsdist.training import (
    AutoConfig,
    Launch,
    RunConfig,
    RunSummary,
    TrainConfig,
    Trainer,
    choose_reducer,
    detect_launch,
    process_group,
    training_device,
)
from gsdist.training.run_config import CONFIG_FILE
from gsdist.training.suited import suited_to
from gsdist.training.summary import loss_by_compression, over_seeds
from gsdist.workloads import (
    ClassificationConfig,
    ClassificationWorkload,
    LanguageConfig,
    LanguageWorkload,
    Workload,
    distillation,
    graph,
)
from gsdist.workloads.distillation.presets import PAIRS, preset
from gsdist.workloads.pruning import PRESETS, PruningConfig

__all__ = ["main", "open_workload", "parse"]

_WORKLOADS: dict[str, tuple[Any, Any]] = {
    "classification": (ClassificationConfig, ClassificationWorkload),
    "language": (LanguageConfig, LanguageWorkload),
    "kd": (distillation.KdConfig, distillation.KdWorkload),
    "dkd": (distillation.DkdConfig, distillation.DkdWorkload),
    "dist": (distillation.DistConfig, distillation.DistWorkload),
    "hsakd-teacher": (distillation.HsakdTeacherConfig, distillation.HsakdTeacherWorkload),
    "hsakd-student": (distillation.HsakdStudentConfig, distillation.HsakdStudentWorkload),
    "hssakd-online": (distillation.HssakdOnlineConfig, distillation.HssakdOnlineWorkload),
    "linear-transfer": (distillation.LinearTransferConfig, distillation.LinearTransferWorkload),
    "detection-transfer": (
        distillation.DetectionTransferConfig,
        distillation.DetectionTransferWorkload,
    ),
    "mcl": (distillation.MclConfig, distillation.MclWorkload),
    "mcl-memory-bank": (distillation.MclMemoryBankConfig, distillation.MclMemoryBankWorkload),
    "mcl-moco": (distillation.MclMocoConfig, distillation.MclMocoWorkload),
    "mv-hetgnn": (graph.NodeConfig, graph.NodeWorkload),
    "mv-hetgnn-links": (graph.GraphConfig, graph.LinkWorkload),
}
_ON_GRAPHS = ("mv-hetgnn", "mv-hetgnn-links")
"""Workloads that begin with the settings of their data, and uncompressed."""
_DEFAULT_REDUCER = "gs-sgd"
_REDUCERS: dict[str, Any] = {**REDUCER_CONFIGS, "auto": AutoConfig}
_OPTIMIZERS = {
    "sgd": TrainConfig(),
    "adamw": TrainConfig(optimizer="adamw", learning_rate=2e-3, weight_decay=0.1),
}
"""Settings that suit each optimizer; options change them."""
_USAGE = """\
usage: gsdist train WORKLOAD [OPTIONS]

Train a workload on one or many workers.

workloads:
  classification   image classification by cross-entropy
  language         byte-level language modelling with a GPT
  kd               image classification with a trained teacher's logits
  dkd              the same, the target and the other classes apart
  dist             the same, by correlations
  hsakd-teacher    a network with a branch at every stage that learns rotations
  hsakd-student    image classification with such a teacher, branch by branch
  hssakd-online    two networks with branches that teach each other
  mcl              networks that contrast each other's embeddings of the batch
  mcl-memory-bank  the same with remembered embeddings
  mcl-moco         the same without labels, by momentum contrast
  linear-transfer  a linear classifier on the features of a trained network
  detection-transfer  a detector of objects on the stages of a trained network
  mv-hetgnn        classification of the nodes of a heterogeneous graph
  mv-hetgnn-links  prediction of the links of a heterogeneous graph

`gsdist train WORKLOAD --help` lists the options.

examples:
  gsdist train classification --data digits --model mlp --epochs 5
  torchrun --nproc-per-node 2 -m gsdist train kd --help
"""
_DESCRIPTION = """\
Train a model on one or many workers.

Options override the settings of --config; every run writes its own file.

Options with --reducer. depend on --reducer, those with --prune. on --prune.

examples:
  gsdist train classification --data digits --model mlp --epochs 5
  torchrun --nproc-per-node 2 -m gsdist train classification \\
      --reducer gs-sgd --reducer.compression 30 --model resnet20 \\
      --data cifar10 --checkpoint-every 500
  torchrun --nproc-per-node 2 -m gsdist train classification \\
      --prune ghfp --prune.rate 0.4
  torchrun --nproc-per-node 2 -m gsdist train classification \\
      --config runs/latest/config.toml --resume
  mpirun -n 2 python -m gsdist train classification --reducer dense
  torchrun --nproc-per-node 2 -m gsdist train language \\
      --model gpt-1m --data shakespeare --optimizer adamw --steps 500
"""


def main(arguments: Sequence[str]) -> int:
    """Parse the arguments, train, and print or write the summary."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return 0 if arguments else 2
    name = arguments[0]
    if name not in _WORKLOADS:
        raise ConfigError(f"unknown workload {name!r}; expected one of {', '.join(_WORKLOADS)}")
    run, json_target = parse(name, arguments[1:])
    summaries = []
    train = run.train
    with open_group(train) as (launch, device):
        for one in run.per_seed():
            workload = open_workload(one)
            if isinstance(one.reducer, AutoConfig):
                one, reason = choose_reducer(one, workload, device)
                if launch.rank == 0:
                    print(reason, file=sys.stderr)
            summaries.append(Trainer(one, workload, device).run())
    if launch.rank == 0:
        _print_summaries(summaries, train, json_target)
    return 0


@contextmanager
def open_group(train: TrainConfig) -> Iterator[tuple[Launch, torch.device]]:
    """Hold a process group as the settings say; give this rank's place in it and what it trains on."""
    launch = detect_launch()
    device = training_device(
        train.device,
        local_rank=launch.local_rank,
        shared=train.backend in ("gloo", "mpi4py"),
        deterministic=train.deterministic,
    )
    timeout = timedelta(seconds=train.init_timeout)
    with process_group(launch, timeout, train.backend, on_gpu=device.type == "cuda"):
        yield launch, device


def open_workload(run: RunConfig) -> Workload:
    """Build the workload that the settings name."""
    workload: Workload = _WORKLOADS[run.workload_name][1](run.workload)
    return workload


def read_run(folder: Path) -> RunConfig:
    """Return the settings of a run that saved its model, from its run directory.

    Raises:
        CheckpointError: the folder is not a run directory.
        ConfigError: its settings cannot be read, or the run saved no model.
    """
    file = folder / CONFIG_FILE
    if not file.exists():
        raise CheckpointError(
            f"{folder} is not a run directory: it has no {CONFIG_FILE}; name that of a finished "
            "`gsdist train ... --save-model FILE`"
        )
    name = _read_toml(file).get("workload", {}).get("name")
    if name not in _WORKLOADS:
        raise CheckpointError(
            f"{file} names the workload {name!r}; expected one that a run wrote: "
            f"{', '.join(_WORKLOADS)}"
        )
    run, _ = parse(name, ["--config", str(file)])
    if run.train.save_model is None:
        raise ConfigError(f"the run in {folder} saved no model; train it with --save-model FILE")
    return run


def parse(workload: str, arguments: Sequence[str]) -> tuple[RunConfig, str | None]:
    """Turn options into settings: those given, else those of --config, else the defaults.

    Returns the settings and where to write the summary as JSON. Prints a message and raises SystemExit
    for unknown options and values that are no such type.

    Raises:
        ConfigError: a value out of range, or a file that is not a configuration.
    """
    file = _peek(arguments, "--config")
    tables = _read_toml(Path(file)) if file is not None else {}
    if _peek(arguments, "--reducer") == "auto" and "--resume" in arguments:
        # what was chosen when the run began, not what would be chosen now
        begun = Path(_peek(arguments, "--run-dir") or TrainConfig().run_dir) / CONFIG_FILE
        if begun.exists():
            return parse(workload, [*_without(arguments, "--reducer"), "--config", str(begun)])
    file_reducer = tables.get("reducer", {}).get("name")
    graph_data = (
        _peek(arguments, "--data") or tables.get("workload", {}).get("data") or "films"
        if workload in _ON_GRAPHS
        else None
    )
    default_reducer = _DEFAULT_REDUCER if graph_data is None else "dense"
    reducer = _peek(arguments, "--reducer") or file_reducer or default_reducer
    if reducer not in _REDUCERS:
        raise ConfigError(f"unknown reducer {reducer!r}; expected one of {', '.join(_REDUCERS)}")
    if reducer != file_reducer:
        tables.pop("reducer", None)  # the settings of another exchange method
    file_optimizer = tables.get("train", {}).get("optimizer")
    optimizer = _peek(arguments, "--optimizer") or file_optimizer
    every_step = not (
        _peek(arguments, "--outer-interval") or tables.get("train", {}).get("outer_interval")
    )
    prune = _peek(arguments, "--prune")
    if prune is not None:
        tables.pop("pruning", None)  # the settings of another method
    elif "pruning" in tables:
        prune = next(iter(PRESETS))  # all of whose settings the file overrides
    if prune is not None and prune not in PRESETS:
        raise ConfigError(f"unknown method {prune!r}; --prune takes one of {', '.join(PRESETS)}")
    options_class = _options_class(
        workload,
        reducer,
        optimizer,
        pair=_peek(arguments, "--pair"),
        prune=prune,
        graph_data=graph_data,
        every_step=every_step,
    )
    defaults = options_class()
    if file is not None:
        defaults = _parse_file(options_class, workload, tables, file)
    options = tyro.cli(
        options_class,
        args=list(arguments),
        default=defaults,
        prog=f"gsdist train {workload}",
        description=_DESCRIPTION,
    )
    run = RunConfig(
        workload_name=workload,
        workload=options.workload,
        reducer=options.reducer,
        train=options.train,
        pruning=options.pruning if prune is not None else None,
    )
    return run, options.json


def _defaults(
    workload: str, optimizer: str | None, *, pair: str | None, graph_data: str | None
) -> tuple[Any, TrainConfig]:
    """Return the settings that workload and training begin with: those of the optimizer, then of a preset."""
    train = _OPTIMIZERS.get(optimizer or "sgd", _OPTIMIZERS["sgd"])  # tyro refuses other names
    workload_settings: Mapping[str, Any] = {}
    if pair is not None:
        workload_settings, train_settings = preset(pair, workload)
        train = dataclasses.replace(train, **train_settings)
    if graph_data is not None:
        workload_settings, train_settings = graph.preset(workload, graph_data)
        if optimizer in (None, "adamw"):
            train = dataclasses.replace(train, **train_settings)
    return _WORKLOADS[workload][0](**workload_settings), train


def _options_class(
    workload: str,
    reducer: str,
    optimizer: str | None,
    *,
    pair: str | None,
    prune: str | None,
    graph_data: str | None,
    every_step: bool,
) -> Any:
    """Make a dataclass of all options; those of workload and training stand at the top level."""
    workload_class = _WORKLOADS[workload][0]
    workload_default, train = _defaults(workload, optimizer, pair=pair, graph_data=graph_data)
    settings: Any = _REDUCERS[reducer]()
    if every_step:
        settings = suited_to(train, settings)
    top_level = tyro.conf.arg(name="")

    def option(kind: Any, default: Any, **settings: Any) -> tuple[Any, Any]:
        return Annotated[kind, tyro.conf.arg(**settings)], dataclasses.field(default=default)

    names = Literal[tuple(_REDUCERS)]  # type: ignore[valid-type]
    fields = {
        "config": option(
            Path | None, None, help="Read settings from a TOML file like the config.toml of a run."
        ),
        "json": option(
            str | None, None, help="Write the summary as JSON to this file; - is standard output."
        ),
        "pair": option(
            str | None,
            None,
            help="Distillation: begin with the published settings of TEACHER:STUDENT, one of "
            f"{', '.join(PAIRS)}; of mcl and hssakd-online NETWORK:NETWORK, such as wrn40-2:wrn40-2.",
        ),
        "prune_name": option(
            str | None,
            prune,
            name="prune",
            help=f"Prune while training, by one of {', '.join(PRESETS)}; --prune.* options change it.",
        ),
        "reducer_name": option(names, reducer, name="reducer", help="How gradients are exchanged."),
        "workload": (
            Annotated[workload_class, top_level],
            dataclasses.field(default=workload_default),
        ),
        "train": (Annotated[TrainConfig, top_level], dataclasses.field(default=train)),
        "reducer": (type(settings), dataclasses.field(default=settings)),
    }
    if prune is not None:
        fields["pruning"] = (
            Annotated[PruningConfig, tyro.conf.arg(name="prune")],
            dataclasses.field(default=PRESETS[prune]),
        )
    return dataclasses.make_dataclass(
        "Options",
        [(name, kind, field) for name, (kind, field) in fields.items()],
        frozen=True,
        kw_only=True,
    )


def _peek(arguments: Sequence[str], option: str) -> str | None:
    """Find the value of an option that decides which other options there are."""
    found = None
    for position, argument in enumerate(arguments):
        if argument == option and position + 1 < len(arguments):
            found = arguments[position + 1]
        elif argument.startswith(option + "="):
            found = argument.partition("=")[2]
    return found


def _without(arguments: Sequence[str], option: str) -> list[str]:
    """Return the arguments without an option and its value."""
    kept: list[str] = []
    for position, argument in enumerate(arguments):
        follows = position > 0 and arguments[position - 1] == option
        if argument != option and not argument.startswith(option + "=") and not follows:
            kept.append(argument)
    return kept


def _read_toml(file: Path) -> dict[str, dict[str, Any]]:
    try:
        content = tomllib.loads(file.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read --config {file}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"--config {file} is not TOML: {error}") from error
    for name, table in content.items():
        if name not in ("workload", "reducer", "train", "pruning") or not isinstance(table, dict):
            raise ConfigError(
                f"--config {file}: unexpected {name!r}; expected the tables [workload], [reducer], "
                "[train] and [pruning]"
            )
    return content


def _parse_file(
    options_class: Any, workload: str, tables: Mapping[str, Mapping[str, Any]], file: str
) -> Any:
    """Check the values of a file as if they had been given as options."""
    if tables.get("workload", {}).get("name", workload) != workload:
        raise ConfigError(
            f"--config {file} is for the workload {tables['workload']['name']!r}, not {workload!r}"
        )
    arguments: list[str] = []
    for table, values in tables.items():
        for name, value in values.items():
            if name == "name":
                continue
            prefix = {"reducer": "reducer.", "pruning": "prune."}.get(table, "")
            arguments.append(f"--{prefix}{name.replace('_', '-')}")
            arguments += [str(item) for item in (value if isinstance(value, list) else [value])]
    try:
        return tyro.cli(
            options_class, args=arguments, add_help=False, config=(tyro.conf.FlagConversionOff,)
        )
    except SystemExit:
        print(f"gsdist: error: above is about the settings in {file}", file=sys.stderr)
        raise


def _compression_of(summary: RunSummary) -> str:
    parts = ", ".join(f"{name} {value:.1f}x" for name, value in summary.compression_of.items())
    return f"\nof it {parts}" if parts else ""


def _print_summaries(
    summaries: Sequence[RunSummary], train: TrainConfig, json_target: str | None
) -> None:
    text = summaries[0].to_json()
    if train.seeds is not None:
        text = json.dumps(over_seeds(summaries), indent=1) + "\n"
    if json_target == "-":
        print(text, end="")
        return
    if json_target is not None:
        Path(json_target).write_text(text)
    for summary in summaries:
        _print_summary(summary)
    print(f"summary, metrics and settings in {train.run_dir}")


def _print_summary(summary: RunSummary) -> None:
    print(
        f"{summary.primary_metric} {summary.primary:.4f} after {summary.steps} steps "
        f"({summary.steps_per_s:.2f} steps/s) on {summary.world_size} worker(s)\n"
        f"payload {summary.payload_bytes_run:,} bytes, dense {summary.dense_bytes_run:,} bytes: "
        f"{summary.compression:.1f}x compression over the whole run{_compression_of(summary)}"
    )
    if warning := loss_by_compression(summary):
        print(f"gsdist: warning: {warning}", file=sys.stderr)
