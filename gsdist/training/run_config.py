"""Put the settings of a run together: resolve them, write them down, and tell two runs apart."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from gsdist.errors import ConfigError
from gsdist.reducers import REDUCER_CONFIGS, ReducerConfig
from gsdist.training.config import TrainConfig
from gsdist.workloads.pruning import PruningConfig

__all__ = ["CONFIG_FILE", "AutoConfig", "RunConfig", "flatten"]

CONFIG_FILE = "config.toml"
"""In every run directory: the settings of the run."""

_BOOKKEEPING = frozenset(
    {"timeout", "data_workers", "evaluate_every", "log_every", "checkpoint_every", "checkpoint_dir"}
    | {"init_timeout", "compare_every", "checkpoint_async", "residual"}
    | {"keep", "resume", "run_dir", "progress", "device", "backend", "save_model", "wandb_project"}
)
"""Fields of TrainConfig that do not change what is computed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoConfig:
    """Leave the exchange method to the planner, which chooses it at the start (`choose_reducer`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Hold all settings of a run."""

    train: TrainConfig
    reducer: ReducerConfig | AutoConfig
    workload_name: str
    workload: Any
    """The workload's own configuration, a dataclass instance."""
    pruning: PruningConfig | None = None
    """How the model is pruned while it is trained, if it is."""

    @property
    def reducer_name(self) -> str:
        """Return the name users give for the exchange method."""
        if isinstance(self.reducer, AutoConfig):
            return "auto"
        return next(name for name, kind in REDUCER_CONFIGS.items() if type(self.reducer) is kind)

    def exchange(self) -> ReducerConfig:
        """Return the reducer's settings with those that the training settings imply.

        Raises:
            ConfigError: two different bounds for the gradient's norm, or no method has been chosen yet.
        """
        reducer, train = self.reducer, self.train
        if isinstance(reducer, AutoConfig):
            raise ConfigError('reducer is "auto"; let choose_reducer replace it before training')
        fields_there = {field.name for field in fields(reducer)}
        implied: dict[str, Any] = {}
        if train.deterministic and "deterministic" in fields_there:
            implied["deterministic"] = True
        if train.clip_norm is not None and not train.outer_interval:
            given = getattr(reducer, "clip_norm", None)
            if given not in (None, train.clip_norm):
                raise ConfigError(
                    f"clip_norm={train.clip_norm} but the reducer's clip_norm={given}; give one"
                )
            if getattr(reducer, "momentum", None) == "local":
                implied["clip_norm"] = train.clip_norm
        return replace(reducer, **implied)

    def per_seed(self) -> list["RunConfig"]:
        """Return one run per seed, each in a folder of its own below `run_dir`; itself without `seeds`."""
        train = self.train
        if train.seeds is None:
            return [self]
        folders = {
            name: getattr(train, name)
            for name in ("run_dir", "checkpoint_dir")
            if getattr(train, name) is not None
        }
        return [
            replace(
                self,
                train=replace(
                    train,
                    seed=seed,
                    seeds=None,
                    **{name: folder / f"seed-{seed}" for name, folder in folders.items()},
                ),
            )
            for seed in train.seeds
        ]

    def tables(self) -> dict[str, dict[str, Any]]:
        """Return one table per component, values as JSON and TOML know them, unset ones left out."""
        tables = {
            "workload": _plain({"name": self.workload_name, **asdict(self.workload)}),
            "reducer": _plain({"name": self.reducer_name, **asdict(self.reducer)}),
            "train": _plain(asdict(self.train)),
        }
        if self.pruning is not None:
            tables["pruning"] = _plain(asdict(self.pruning))
        return tables

    def course(self) -> dict[str, Any]:
        """Return, flat, the settings that decide the course of the run; a resumed run must share them."""
        tables = self.tables()
        dropped = set(_BOOKKEEPING)
        if self.train.schedule == "constant" and self.pruning is None:
            dropped |= {"epochs", "steps"}  # then a run may be made longer
        elif self.train.steps is not None:
            dropped |= {"epochs"}
        if self.train.outer_interval is None:
            dropped |= {"outer_learning_rate", "outer_momentum", "outer_fragments"}
        train = {name: value for name, value in tables["train"].items() if name not in dropped}
        return flatten({**tables, "train": train})

    def fingerprint(self) -> str:
        """Return a hash of `course`."""
        text = json.dumps(self.course(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_toml(self) -> str:
        """Write everything as TOML; `gsdist train --config` reads it back."""
        lines = [f"# resolved settings of a gsdist run; hash {self.fingerprint()}"]
        for table, values in self.tables().items():
            lines += ["", f"[{table}]"]
            # JSON's spelling of strings, numbers, booleans and arrays of them is TOML's, too.
            lines += [f"{name} = {json.dumps(value)}" for name, value in values.items()]
        return "\n".join(lines) + "\n"


def flatten(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return "table.name" -> value."""
    return {
        f"{table}.{name}": value
        for table, values in tables.items()
        for name, value in values.items()
    }


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    def convert(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        return list(value) if isinstance(value, tuple) else value

    return {name: convert(value) for name, value in values.items() if value is not None}
