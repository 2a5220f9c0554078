"""Exchange the gradients of many emulated workers by the real reducers, in one process."""

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.convergence.oracle import OracleConfig, OracleReducer
from gsdist.collectives.cost_model import Transfer, cost_of
from gsdist.collectives.local_group import LocalGroup, run_together
from gsdist.reducers import (
    CompressedConfig,
    FlatLayout,
    GradientBucket,
    MomentumCorrection,
    Reducer,
    ReducerConfig,
    build_reducer,
)

__all__ = ["EmulatedExchange", "MethodConfig", "dense_bytes"]

MethodConfig = ReducerConfig | OracleConfig


def dense_bytes(parameters: Mapping[str, Tensor], workers: int) -> float:
    """Return what crosses the busiest link in one dense float32 all-reduce along a ring."""
    size = 4 * sum(parameter.numel() for parameter in parameters.values())
    return cost_of((Transfer(kind="ring_all_reduce", size=size),), workers).bytes


class EmulatedExchange:
    """Hold one reducer per worker; each worker is a thread while an exchange runs."""

    def __init__(
        self,
        config: MethodConfig,
        parameters: Mapping[str, Tensor],
        workers: int,
        *,
        momentum: float,
    ) -> None:
        self._groups = LocalGroup.create(workers)
        self.workers = workers
        self.momentum = momentum if _takes_momentum(config) else None
        """Factor of the momentum that the reducers apply; None: it is left to the optimizer."""
        built = [self._build(config, parameters, group) for group in self._groups]
        self.layout: FlatLayout = built[0][0]
        self.reducers: list[Reducer] = [reducer for _, reducer in built]

    def average(self, gradients: Tensor) -> Tensor:
        """Exchange the workers' gradients and return the average they agree on.

        Args:
            gradients: float32 `(workers, parameters)`, parameters in the order of the layout;
                overwritten.

        Returns:
            A view, `(parameters,)`, of `gradients`.
        """

        def exchange(group: LocalGroup) -> None:
            reducer, row = self.reducers[group.rank()], gradients[group.rank()]
            reducer.push(GradientBucket.whole(self.layout, row))
            reducer.finish()

        run_together(self._groups, exchange)
        if not torch.equal(gradients[0], gradients[-1]):
            raise RuntimeError("workers disagree about the average: a fault in the reducer")
        return gradients[0]

    def last_bytes(self) -> float:
        """Return what crossed the busiest link in the last exchange, by the cost model."""
        return cost_of(self.reducers[0].statistics().transfers_last_step, self.workers).bytes

    def corrected_sum(self, gradients: Tensor) -> Tensor:
        """Return the sum over workers of residual, momentum and gradient before an exchange.

        Compressed parameters only, `(compressed parameters,)`. Computed from the state that reducers
        show, not from what they work with.
        """
        total = self.compressed_part(gradients.sum(dim=0))
        for reducer in self.reducers:
            state = reducer.state_for_new_layout()
            total += self._flat(state["residual"])
            if self.momentum is not None:
                total.add_(self._flat(state["momentum"]), alpha=self.momentum)
        return total

    def compressed_part(self, row: Tensor) -> Tensor:
        """Cut a row of gradients down to the compressed parameters."""
        parts = row.split([segment.numel for segment in self.layout])
        pairs = zip(parts, self.layout, strict=True)
        return torch.cat([part for part, segment in pairs if segment.compressed])

    def _flat(self, named: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([named[segment.name].flatten() for segment in self.layout.compressed])

    def _build(
        self, config: MethodConfig, parameters: Mapping[str, Tensor], group: LocalGroup
    ) -> tuple[FlatLayout, Reducer]:
        correction = None
        if self.momentum is not None:
            correction = MomentumCorrection(factor=self.momentum, nesterov=False)
        if isinstance(config, OracleConfig):
            layout = FlatLayout.from_parameters(parameters.items(), config.is_dense)
            return layout, OracleReducer(layout, config, group, momentum=correction)
        with warnings.catch_warnings():
            # Settings that a user is warned about are asked for here, to see what they bring.
            warnings.simplefilter("ignore", UserWarning)
            return build_reducer(config, parameters, group, momentum=correction)


def _takes_momentum(config: MethodConfig) -> bool:
    return isinstance(config, CompressedConfig) and config.momentum == "local"
