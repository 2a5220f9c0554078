"""Hold what every way of attaching a reducer to training shares."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from gsdist.errors import ConfigError
from gsdist.integrations.optimizer import ReplicatedTerms, momentum_of
from gsdist.reducers import (
    CompressedConfig,
    ExchangeStatistics,
    MomentumCorrection,
    Reducer,
    ReducerConfig,
)

__all__ = ["AttachedReducer", "split_optimizer"]


class AttachedReducer:
    """Count, save and restore an exchange, and add after it what depends on parameters only."""

    _reducer: Reducer
    _replicated: ReplicatedTerms | None

    @property
    def last_step_skipped(self) -> bool:
        """Tell whether all ranks gave the last exchange up because a gradient was not finite.

        With non_finite="skip", do not call `optimizer.step()` then: averaged gradients are zero, but momentum
        and weight decay would still move the parameters.
        """
        return self._reducer.last_step_skipped

    def stats(self) -> ExchangeStatistics:
        """Return bytes, seconds per phase and the residual norm of this rank."""
        return self._reducer.statistics()

    def set_replicated_loss(self, loss: Callable[[], Tensor | None] | None) -> None:
        """Add the gradient of a loss that depends on parameters only, after the exchange.

        `loss` is called before every optimizer step and returns a scalar or None.

        Raises:
            ConfigError: no optimizer was given.
        """
        if self._replicated is None:
            raise ConfigError(
                "a replicated loss is added before the optimizer steps; pass optimizer= to attach"
            )
        self._replicated.loss = loss

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's state: nested dicts of tensors and numbers. It differs from rank to rank."""
        return self._with_replicated(self._reducer.state_dict())

    def inherited_state(
        self, first: Mapping[str, Any], states: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Return this rank's share of what another number of ranks had saved; load it next.

        `first` is what rank 0 saved, `states` what those ranks saved from which this one takes over. Give
        every old rank to one new rank and nothing that was kept back is lost.
        """
        return self._reducer.inherited_state(first, states)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned on the same rank.

        Raises:
            ConfigError: the state is of another model or another momentum setting.
        """
        self._reducer.load_state_dict(state)
        if self._replicated:
            self._replicated.load_state_dict(state.get("replicated_momentum", {}))

    def _with_replicated(self, state: dict[str, Any]) -> dict[str, Any]:
        if self._replicated:
            state["replicated_momentum"] = self._replicated.state_dict()
        return state


def split_optimizer(
    config: ReducerConfig, optimizer: Optimizer | None, parameters: Mapping[str, Tensor]
) -> tuple[MomentumCorrection | None, dict[str, float]]:
    """Return what a method takes over from the optimizer: momentum, and each parameter's weight decay.

    Raises:
        ConfigError: momentum="local" without an optimizer, or as `momentum_of` says.
        UnsupportedSetup: as `momentum_of` says.
    """
    if not isinstance(config, CompressedConfig) or config.momentum != "local":
        return None, {}
    if optimizer is None:
        raise ConfigError(
            'momentum="local" takes over the momentum of the optimizer; pass optimizer= to attach, or use '
            'momentum="post"'
        )
    return momentum_of(optimizer, parameters)
