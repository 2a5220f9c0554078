"""Define what a workload gives the trainer: model, loss, data and evaluation.

A workload knows nothing of how gradients travel. The trainer owns processes, wrapping, optimizer,
exchange and checkpoints, and carries over what a workload says about them. In these words "the
model" is the module that `build_model` returned, never its DDP wrapper, except in `Workload.loss`.

One training step, as the trainer runs it:

1. `prepare_batch(batch, training=True, generator=...)` on a collated batch already on the device;
2. `loss(wrapped_model, batch)`, then backward of `LossParts.total`, which exchanges the gradient;
3. `replicated_loss(model)`, whose gradient every rank adds after the exchange;
4. the optimizer steps;
5. `after_step(model, step)`;
6. `layout_change(model, step)`: when it returns one, the trainer moves optimizer and exchange state
   over to the new model, wraps that, and from here on passes that;
7. `coordinate_mask(model)`: handed on to the exchange when it is not the object returned the time
   before.

Steps 3 and 5 to 7 must give the same result on every rank: they may depend on parameters, on `step`
and on the configuration, never on this rank's data.
"""

import abc
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from gsdist.errors import ConfigError, InputTypeError

__all__ = ["BatchSchedule", "FinalMeasures", "LayoutChange", "LossParts", "Workload"]


class LossParts(dict[str, Tensor]):
    """Hold the named scalar terms whose sum is minimised; each is logged under its name.

    Raises:
        ConfigError: no term, or a term that is not a scalar.
        InputTypeError: a term that is not a tensor.
    """

    def __init__(self, parts: Mapping[str, Tensor]) -> None:
        super().__init__(parts)
        if not self:
            raise ConfigError("a loss needs at least one term, got none")
        for name, term in self.items():
            if not isinstance(term, Tensor):
                raise InputTypeError(
                    f"loss term {name!r} must be a tensor, got {type(term).__name__}"
                )
            if term.ndim != 0:
                raise ConfigError(
                    f"loss term {name!r} must be a scalar, got shape {tuple(term.shape)}; "
                    "reduce it with mean() or sum()"
                )

    @property
    def total(self) -> Tensor:
        """Add the terms up, in their order, into the scalar that is minimised."""
        terms = list(self.values())
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total


class BatchSchedule(Protocol):
    """Yield one rank's batches of indices of epoch `epoch`, beginning at batch `first_batch`.

    A pure function of settings, epoch and rank; every rank yields as many batches of the same size.
    """

    epoch: int
    first_batch: int

    @property
    def batches_per_epoch(self) -> int:
        """Return the number of batches of a whole epoch."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[list[int]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutChange:
    """Say where the parameters of a smaller model lie in those of the model it replaces."""

    model: nn.Module
    """The new module. Its parameters already hold the values to go on with."""
    kept: Mapping[str, tuple[Tensor | None, ...]]
    """For each parameter name of the new model one entry per dimension: int64 indices into the old
    parameter of the same name, ascending, or None for "all of this dimension". Momentum, residual
    and the like are cut the same way. Old parameters that are not named are gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalMeasures:
    """Hold what is measured once, on the trained model."""

    metrics: Mapping[str, float]
    """Added to the results of the last, or the best, evaluation."""
    picture: Mapping[str, Any] | None = None
    """Examples placed in the plane: lists "x", "y" and "group" (a class), for the report."""


class Workload(abc.ABC):
    """Bundle model, loss, data and evaluation of one kind of training; one instance per process.

    A batch is whatever the DataLoader makes of the data set's items and `prepare_batch` makes of
    that; only the workload looks inside.
    """

    name: str
    """Short name for logs and reports."""
    primary_metric: str
    """The metric of `evaluate` by which runs are compared; higher is better."""
    selection_metric: str | None = None
    """The metric of `evaluate` whose highest value marks the weights a run ends with; None: the last."""

    @abc.abstractmethod
    def build_model(self) -> nn.Module:
        """Build the model on the CPU, with weights drawn from torch's global generator."""

    @abc.abstractmethod
    def training_dataset(self) -> Dataset[Any]:
        """Return the map-style training set; the trainer makes sampler and DataLoader."""

    @abc.abstractmethod
    def evaluation_dataset(self) -> Dataset[Any]:
        """Return the map-style evaluation set; the trainer gives each item to one rank."""

    @abc.abstractmethod
    def prepare_batch(
        self, batch: Any, *, training: bool, generator: torch.Generator | None = None
    ) -> Any:
        """Turn a collated batch into what `loss` and `evaluate` take, on the device where it lies.

        Args:
            batch: what the DataLoader gave, moved to the device by the trainer.
            training: whether to augment.
            generator: this rank's generator, on any device; its state is part of the checkpoint, so
                all random choices are drawn from it. Needed only while training.
        """

    @abc.abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> LossParts:
        """Compute this rank's loss on a prepared batch; calls `model`, maybe wrapped, once."""

    @abc.abstractmethod
    def evaluate(
        self, model: nn.Module, batches: Iterable[Any]
    ) -> Mapping[str, tuple[float, float]]:
        """Return metric -> (sum, count) over this rank's prepared batches.

        The trainer adds sums and counts up over ranks and divides. Implementations switch to
        evaluation mode without gradients and leave the model in the mode it came in. All ranks
        return the same metric names, also for no batches. Issues no collective unless it says so.
        """

    def training_batches(
        self, *, batch_size: int, rank: int, world_size: int, seed: int
    ) -> BatchSchedule | None:
        """Return how the training set is dealt out in batches, or None for a plain shuffle."""
        return None

    def collate_function(self) -> Callable[[list[Any]], Any] | None:
        """Return what makes a batch of the data set's items, or None for torch's way, which stacks them."""
        return None

    def part_of(self, parameter: str) -> str | None:
        """Name the part of the model, of those whose compression is reported apart, that holds it."""
        return None

    def replicated_loss(self, model: nn.Module) -> Tensor | None:
        """Return a scalar that depends on parameters only, or None.

        Its gradient is the same on all ranks, so it is added after the exchange and never
        compressed.
        """
        return None

    def coordinate_mask(self, model: nn.Module) -> Mapping[str, Tensor] | None:
        """Return which coordinates are trained, or None for all of them ("no mask").

        Maps parameter names to bool tensors of the parameter's shape, True where trained; a
        parameter that is not named is trained whole. Asked once before training and after every
        `after_step`. Identity tells whether it
        changed: return the very same object while it holds, a new one (or None) when it does not.
        """
        return None

    def final_measures(self, model: nn.Module) -> FinalMeasures | None:
        """Measure what is too slow for every evaluation; called at the end, on rank 0 only.

        May leave the model in evaluation mode. Issues no collective.
        """
        return None

    def layout_change(self, model: nn.Module, step: int) -> LayoutChange | None:
        """Return the smaller model that takes over after this step, or None to go on as before."""
        return None

    def after_step(self, model: nn.Module, step: int) -> None:  # noqa: B027
        """Do what the method needs after the optimizer's step number `step`, counted from 1."""
