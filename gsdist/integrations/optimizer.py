"""Divide SGD between gsdist and the optimizer when momentum is applied before compression.

gsdist applies momentum to each worker's own gradient. What depends on parameters only (weight decay, a
replicated loss) is equal on all ranks and never exchanged: it is added after the exchange, with a momentum
buffer of its own, z = m*z + lambda*w + r. As momentum is linear, both together are torch's SGD.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from gsdist.errors import ConfigError, UnsupportedSetup
from gsdist.reducers import MomentumCorrection

__all__ = ["ReplicatedTerms", "momentum_of", "take_momentum_from"]


def momentum_of(
    optimizer: Optimizer, named_parameters: Mapping[str, Tensor]
) -> tuple[MomentumCorrection, dict[str, float]]:
    """Read off an SGD optimizer the momentum and each named parameter's weight decay.

    Raises:
        UnsupportedSetup: the optimizer is not plain SGD, or has already stepped.
        ConfigError: groups differ in momentum, momentum is 0, or a parameter is in no group.
    """
    if type(optimizer) is not SGD:
        raise UnsupportedSetup(
            f'momentum="local" replaces the momentum of torch.optim.SGD, got {type(optimizer).__name__}; '
            'use momentum="post" with this optimizer'
        )
    if any("momentum_buffer" in state for state in optimizer.state.values()):
        raise UnsupportedSetup(
            "the optimizer has already taken steps and holds momentum buffers; attach before the first "
            "step, or load a state saved with gsdist attached"
        )
    kinds = {(group["momentum"], group["nesterov"]) for group in optimizer.param_groups}
    if len(kinds) != 1:
        raise ConfigError(
            f"all parameter groups must share momentum and nesterov, got {sorted(kinds)}"
        )
    factor, nesterov = kinds.pop()
    if factor == 0:
        raise ConfigError(
            'momentum="local" needs an SGD optimizer with momentum, got momentum=0; set it or use '
            'momentum="post"'
        )
    for option in ("dampening", "maximize"):
        if any(group[option] for group in optimizer.param_groups):
            raise UnsupportedSetup(f'momentum="local" does not support SGD with {option}')
    decay_of = {
        id(parameter): float(group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    missing = [name for name, p in named_parameters.items() if id(p) not in decay_of]
    if missing:
        raise ConfigError(
            f"the optimizer does not hold {missing[:5]}; give it all trainable parameters"
        )
    decay = {name: decay_of[id(p)] for name, p in named_parameters.items()}
    return MomentumCorrection(factor=float(factor), nesterov=bool(nesterov)), decay


def take_momentum_from(optimizer: Optimizer) -> None:
    """Leave an SGD optimizer only its learning rates; schedulers go on working."""
    for group in optimizer.param_groups:
        group.update(momentum=0.0, nesterov=False, weight_decay=0.0)


class ReplicatedTerms:
    """Add to the averaged gradients what depends on parameters only, just before the optimizer steps."""

    def __init__(
        self,
        optimizer: Optimizer,
        named_parameters: Mapping[str, Tensor],
        *,
        momentum: MomentumCorrection | None,
        weight_decay: Mapping[str, float] | None = None,
    ) -> None:
        self.loss: Callable[[], Tensor | None] | None = None
        """Called before every step; its gradient is added. Must not depend on data."""
        self._parameters = dict(named_parameters)
        self._momentum = momentum
        self._weight_decay = dict(weight_decay or {})
        self._masks: dict[str, Tensor] = {}
        self._buffers = (
            {name: torch.zeros_like(p, requires_grad=False) for name, p in self._parameters.items()}
            if momentum
            else {}
        )
        optimizer.register_step_pre_hook(self._before_step)

    def set_mask(self, mask: Mapping[str, Tensor] | None) -> None:
        """Leave masked coordinates alone."""
        self._masks = dict(mask or {})
        for name, kept in self._masks.items():
            if name in self._buffers:
                self._buffers[name].mul_(kept)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the replicated momentum, keyed by parameter name."""
        return {name: buffer.clone() for name, buffer in self._buffers.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        if set(state) != set(self._buffers):
            raise ConfigError(
                "the saved replicated momentum is of another model or momentum setting"
            )
        for name, buffer in self._buffers.items():
            buffer.copy_(state[name])

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        if self._momentum and any(group["momentum"] for group in optimizer.param_groups):
            raise UnsupportedSetup(
                "something set the optimizer's momentum after gsdist took it over (a scheduler that cycles "
                'momentum?); switch that off or use momentum="post"'
            )
        gradients = self._loss_gradients()
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                if parameter.grad is not None:
                    self._add(name, parameter, gradients.get(name))

    def _loss_gradients(self) -> dict[str, Tensor]:
        with torch.enable_grad():
            loss = self.loss() if self.loss else None
            if loss is None:
                return {}
            names = list(self._parameters)
            found = torch.autograd.grad(loss, list(self._parameters.values()), allow_unused=True)
        return {name: g for name, g in zip(names, found, strict=True) if g is not None}

    def _add(self, name: str, parameter: Tensor, gradient: Tensor | None) -> None:
        assert parameter.grad is not None
        decay = self._weight_decay.get(name, 0.0)
        if gradient is None and decay == 0.0:
            term = None
        else:
            term = parameter * decay if gradient is None else gradient.add(parameter, alpha=decay)
            if name in self._masks:
                term.mul_(self._masks[name])
        if self._momentum is None:
            if term is not None:
                parameter.grad.add_(term)
            return
        buffer = self._buffers[name].mul_(self._momentum.factor)
        if term is not None:
            buffer.add_(term)
        if self._momentum.nesterov:
            parameter.grad.add_(buffer, alpha=self._momentum.factor)
            if term is not None:
                parameter.grad.add_(term)
        else:
            parameter.grad.add_(buffer)
