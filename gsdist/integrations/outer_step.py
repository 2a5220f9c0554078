"""Train every worker on its own for some steps, then exchange how far each has come (local SGD).

    outer = OuterStep(model, GsSgdConfig(compression=8), OuterStepConfig(interval=16))
    for number, batch in enumerate(loader, start=1):
        ...  # backward and step of any optimizer, without DistributedDataParallel
        outer.step(number)

Source: DiLoCo (Douillard et al., arXiv 2311.08105, algorithm 1): the difference between where all workers
began and where one has come is its pseudo-gradient; their average is what an outer optimizer, SGD with
Nesterov's momentum, steps on. With a compressing method in the place of the all-reduce it is the form of
SparseLoCo (arXiv 2508.15706); with several fragments, each exchanged at a time of its own, that of Streaming
DiLoCo (arXiv 2501.18512), without its overlap of exchange and training.

======  =====================================================================
symbol  here
======  =====================================================================
H       `interval`: inner steps from one outer step to the next
theta   `anchors`: the parameters on which all workers agree
Delta   pseudo-gradient, theta minus a worker's own parameters
======  =====================================================================
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from gsdist.collectives import open_group, require_agreement, share_faults
from gsdist.errors import ConfigError, UnsupportedSetup
from gsdist.integrations.optimizer import ReplicatedTerms, momentum_of, take_momentum_from
from gsdist.reducers import (
    CompressedConfig,
    ExchangeStatistics,
    GradientBucket,
    GradientSlice,
    ReducerConfig,
    build_reducer,
)
from gsdist.reducers.config import check_fields

__all__ = ["OuterStep", "OuterStepConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OuterStepConfig:
    """Configure the outer optimizer and when it steps."""

    interval: int = 16
    """Steps of each worker on its own from one exchange to the next."""
    learning_rate: float = 1.0
    """Of the outer optimizer; 1 without momentum takes over the workers' mean, DiLoCo has 0.7."""
    momentum: float = 0.0
    """Nesterov's momentum of the outer optimizer; DiLoCo has 0.9, for runs of many outer steps."""
    fragments: int = 1
    """Parts of the model that are exchanged at different steps, each once in an interval."""

    def __post_init__(self) -> None:
        """Check the fields."""
        checks = {
            "interval": (self.interval >= 1, "at least 1"),
            "learning_rate": (self.learning_rate > 0, "positive"),
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"),
            "fragments": (1 <= self.fragments <= self.interval, "in 1..interval"),
        }
        check_fields(self, checks)


class OuterStep:
    """Bring the workers' models together once in an interval; in between they differ.

    Every worker starts from rank 0's parameters. All methods must be called on every rank.
    """

    def __init__(
        self,
        model: nn.Module,
        reducer: ReducerConfig,
        config: OuterStepConfig,
        *,
        optimizer: Optimizer | None = None,
    ) -> None:
        """Check the set-up, agree with all ranks and take rank 0's parameters.

        `reducer` says how pseudo-gradients are exchanged; with momentum="local" it applies the outer
        momentum before compression. `optimizer`, the inner one, is needed for `set_replicated_loss`.

        Raises:
            GsdistError: a subclass that says what is wrong, on every rank if any rank finds a fault.

        Collectives: creates a process group; four all-gathers; a broadcast of every parameter.
        """
        group = open_group()
        self._config = config
        self._step = 0
        parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        with share_faults(group):
            self._fragments = [
                _Fragment(part, reducer, config, group)
                for part in _divided(parameters, config.fragments)
            ]
        require_agreement(
            {
                "reducer": type(reducer).__name__,
                **asdict(reducer),
                "outer step": asdict(config),
                "model": [fragment.fingerprint for fragment in self._fragments],
            },
            group,
            subject="outer step's configuration",
        )
        for fragment in self._fragments:
            fragment.take_parameters_of_rank_zero(group)
        self._numel = sum(parameter.numel() for parameter in parameters.values())
        self._replicated = (
            ReplicatedTerms(optimizer, parameters, momentum=None) if optimizer else None
        )

    def step(self, number: int, *, last: bool = False) -> None:
        """Exchange the fragments whose turn it is after inner step `number`, counted from 1.

        `last` exchanges all of them, so that the run ends with equal models. What a skipped exchange
        (non_finite="skip") would have brought is dropped: the workers start again from the anchors.

        Raises:
            GsdistError: what the exchange raises, alike on every rank.

        Collectives: those of the exchange method, once per fragment.
        """
        self._step = number
        interval, count = self._config.interval, len(self._fragments)
        for position, fragment in enumerate(self._fragments):
            if last or (number + position * interval // count) % interval == 0:
                fragment.exchange()

    @contextmanager
    def shared_parameters(self) -> Iterator[None]:
        """Let the model hold, inside the block, the parameters on which all workers agree."""
        own = [fragment.swap_in_anchors() for fragment in self._fragments]
        try:
            yield
        finally:
            for fragment, parameters in zip(self._fragments, own, strict=True):
                fragment.restore(parameters)

    @property
    def last_step_skipped(self) -> bool:
        """Return False: no worker waits for others about its own steps."""
        return False

    def stats(self) -> ExchangeStatistics:
        """Return the counters of this rank; dense bytes are those of an exchange after every inner step."""
        parts = [fragment.reducer.statistics() for fragment in self._fragments]
        phases = {name for part in parts for name in part.seconds}
        return ExchangeStatistics(
            steps=self._step,
            skipped_steps=sum(part.skipped_steps for part in parts),
            payload_bytes=sum(part.payload_bytes for part in parts),
            payload_bytes_last_step=sum(part.payload_bytes_last_step for part in parts),
            dense_bytes=4 * self._numel * self._step,
            transfers_last_step=tuple(t for part in parts for t in part.transfers_last_step),
            seconds={n: sum(part.seconds.get(n, 0.0) for part in parts) for n in phases},
            payload_bytes_of={n: b for part in parts for n, b in part.payload_bytes_of.items()},
            residual_norm=math.hypot(*(part.residual_norm for part in parts)),
        )

    def set_mask(self, mask: Mapping[str, Tensor] | None) -> None:
        """Refuse masks: between two exchanges nothing would keep masked coordinates still."""
        if mask is not None:
            raise UnsupportedSetup(
                "a coordinate mask cannot be kept between outer steps; exchange every step instead"
            )

    def set_replicated_loss(self, loss: Callable[[], Tensor | None] | None) -> None:
        """Add the gradient of a loss that depends on parameters only, before every inner step.

        Raises:
            ConfigError: no optimizer was given.
        """
        if self._replicated is None:
            raise ConfigError("a replicated loss is added before the inner steps; pass optimizer=")
        self._replicated.loss = loss

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's state: anchors, outer momentum and what the exchange keeps.

        The model's own parameters differ from the anchors and between ranks; save them on every rank.
        """
        return {
            "step": self._step,
            "fragments": [fragment.state_dict() for fragment in self._fragments],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned on the same rank.

        Raises:
            ConfigError: the state is of other fragments, another model or another momentum setting.
        """
        if len(state["fragments"]) != len(self._fragments):
            raise ConfigError(
                f"the saved state has {len(state['fragments'])} fragments, this run {len(self._fragments)}; "
                "resume with the number of the run that saved it"
            )
        self._step = int(state["step"])
        for fragment, saved in zip(self._fragments, state["fragments"], strict=True):
            fragment.load_state_dict(saved)


class _Fragment:
    """Own the anchors, the outer optimizer and the exchange of some parameters."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        reducer: ReducerConfig,
        config: OuterStepConfig,
        group: dist.ProcessGroup,
    ) -> None:
        self._parameters = parameters
        self._anchors = {
            # a copy, and in single precision even if the model is not
            name: nn.Parameter(parameter.detach().to(torch.float32, copy=True))
            for name, parameter in parameters.items()
        }
        self._optimizer = SGD(
            self._anchors.values(),
            lr=config.learning_rate,
            momentum=config.momentum,
            nesterov=config.momentum > 0,
        )
        momentum = None
        if isinstance(reducer, CompressedConfig) and reducer.momentum == "local":
            momentum, _ = momentum_of(self._optimizer, self._anchors)
            take_momentum_from(self._optimizer)
        self._layout, self.reducer = build_reducer(reducer, parameters, group, momentum=momentum)

    @property
    def fingerprint(self) -> str:
        return self._layout.fingerprint()

    @torch.no_grad()
    def take_parameters_of_rank_zero(self, group: dist.ProcessGroup) -> None:
        for name, anchor in self._anchors.items():
            dist.broadcast(anchor, group=group, group_src=0)
            self._parameters[name].copy_(anchor)

    @torch.no_grad()
    def exchange(self) -> None:
        buffer = torch.empty(self._layout.numel, device=self._layout.device)
        slices: list[GradientSlice] = []
        for segment in self._layout:
            start = sum(slice_.segment.numel for slice_ in slices)
            gradient = buffer[start : start + segment.numel]
            anchor = self._anchors[segment.name]
            difference = gradient.as_strided(segment.shape, segment.stride)
            torch.sub(anchor, self._parameters[segment.name], out=difference)
            # the reducer overwrites the view with the average
            anchor.grad = difference
            slices.append(GradientSlice(segment=segment, gradient=gradient))
        self.reducer.push(GradientBucket(buffer=buffer, slices=tuple(slices)))
        self.reducer.finish()
        if not self.reducer.last_step_skipped:
            self._optimizer.step()
        self._optimizer.zero_grad()
        self.restore(self._anchors)

    @torch.no_grad()
    def swap_in_anchors(self) -> dict[str, Tensor]:
        """Give the model the anchors; return what it had."""
        own = {name: parameter.clone() for name, parameter in self._parameters.items()}
        self.restore(self._anchors)
        return own

    @torch.no_grad()
    def restore(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])

    def state_dict(self) -> dict[str, Any]:
        return {
            "anchors": {name: anchor.detach().clone() for name, anchor in self._anchors.items()},
            "optimizer": self._optimizer.state_dict(),
            "reducer": self.reducer.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if set(state["anchors"]) != set(self._anchors):
            raise ConfigError("the saved outer state is of a model with other parameters")
        for name, anchor in self._anchors.items():
            anchor.copy_(state["anchors"][name])
        self._optimizer.load_state_dict(state["optimizer"])
        self.reducer.load_state_dict(state["reducer"])


def _divided(parameters: Mapping[str, nn.Parameter], count: int) -> list[dict[str, nn.Parameter]]:
    """Divide parameters, in order, into fragments of about equally many numbers.

    Raises:
        ConfigError: a fragment would have none.
    """
    total = sum(parameter.numel() for parameter in parameters.values())
    parts: list[dict[str, nn.Parameter]] = [{} for _ in range(count)]
    before = 0
    for name, parameter in parameters.items():
        middle = before + parameter.numel() / 2
        parts[min(count - 1, int(count * middle / total))][name] = parameter
        before += parameter.numel()
    if not all(parts):
        raise ConfigError(
            f"fragments is {count}, but the model's {len(parameters)} parameters cannot be divided so "
            "evenly; use fewer"
        )
    return parts
