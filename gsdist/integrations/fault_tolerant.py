"""Exchange gradients between replicas that may come and go, under torchft's manager.

    manager = torchft.Manager(pg=torchft.ProcessGroupGloo(), use_async_quorum=False, ...)
    optimizer = torchft.Optimizer(manager, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    exchange = gsdist.attach_torchft(model, gsdist.GsSgdConfig(), optimizer)
    for images, labels in loader:
        optimizer.zero_grad()         # torchft agrees on who takes part; who is behind takes over the state
        loss(model(images), labels).backward()
        exchange.average_gradients()  # takes the place of torchft.DistributedDataParallel
        optimizer.step()              # only if nothing failed

A replica that is lost takes what it had kept back with it; the others go on with what they have. One that
joins starts with nothing kept back, and with what is alike on all replicas (bases, energies, ages, the step,
momentum of averages) from a healthy one. A step in which a collective fails changes nothing. If it fails on
some replicas only, because one died while the last sum was under way, those that have the sum apply it, and
the others are then behind: they take over the state like replicas that join.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gsdist.collectives import LocalGroup, transport_failures
from gsdist.errors import CollectiveError, ConfigMismatch, UnsupportedSetup
from gsdist.integrations.attached import AttachedReducer, split_optimizer
from gsdist.integrations.optimizer import ReplicatedTerms, take_momentum_from
from gsdist.reducers import GradientBucket, GradientSlice, ReducerConfig, build_reducer
from gsdist.reducers.layout import Segment

if TYPE_CHECKING:
    import torchft

__all__ = ["FaultTolerantExchange", "attach_torchft"]


class FaultTolerantExchange(AttachedReducer):
    """Average gradients over the replicas of torchft's present quorum.

    Supported: replicas of one process each, torchft's gloo group, a quorum that is waited for
    (use_async_quorum=False), any optimizer inside `torchft.Optimizer`. Not supported: sharded parameters, a
    GradScaler, spare replicas. Nothing overlaps with backward.
    """

    def __init__(
        self, model: nn.Module, config: ReducerConfig, optimizer: "torchft.Optimizer"
    ) -> None:
        """Check the set-up and tell the manager how a replica that joins gets its state.

        Model and optimizer are restored by the functions the manager was built with, as always. Settings are
        compared when a state is taken over.

        Raises:
            GsdistError: a subclass that says what is wrong.

        Collectives: none.
        """
        from torchft.process_group import ManagedProcessGroup, ProcessGroupGloo

        self._manager = optimizer.manager
        self._process_group = ManagedProcessGroup(self._manager).parent
        if not isinstance(self._process_group, ProcessGroupGloo):
            raise UnsupportedSetup(
                f"the manager's process group is a {type(self._process_group).__name__}; build it with "
                "pg=torchft.ProcessGroupGloo(), the only one this was tried with"
            )
        self._parameters = _trained_parameters(model)
        momentum, weight_decay = split_optimizer(config, optimizer.optim, self._parameters)
        self._build = partial(build_reducer, config, self._parameters, momentum=momentum)
        self._group: dist.ProcessGroup = _no_others()
        self._layout, self._reducer = self._build(self._group)
        self._settings = {
            "reducer": repr(config),
            "momentum correction": repr(momentum),
            "weight_decay": repr(weight_decay),
            "model": self._layout.fingerprint(),
        }
        self._before: dict[str, Any] | None = None
        """The reducer's state before an exchange that the optimizer has not applied yet."""
        optimizer.optim.register_step_pre_hook(self._before_step)
        optimizer.optim.register_step_post_hook(self._after_step)
        self._replicated = ReplicatedTerms(
            optimizer.optim, self._parameters, momentum=momentum, weight_decay=weight_decay
        )
        if momentum:
            take_momentum_from(optimizer.optim)
        self._manager.register_state_dict_fn("gsdist", self._take_over, self._state_to_join_with)

    # ---- what users call ----------------------------------------------------------------------------

    @torch.no_grad()
    def average_gradients(self) -> None:
        """Exchange what backward left in the parameters' gradients; call it before `optimizer.step()`.

        A collective that fails is reported to the manager: the optimizer then does not step, and all state
        is as before. So is a gradient that is not finite under non_finite="skip".

        Raises:
            GsdistError: what the exchange raises otherwise, alike on every replica.
            UnsupportedSetup: this replica takes no part in the quorum; on this replica.

        Collectives: those of the method, between the replicas of the quorum.
        """
        if self._manager.errored():  # the new group could not be built
            return
        if not self._manager.is_participating():
            raise UnsupportedSetup(
                "this replica is in the quorum without taking part; build the manager with "
                "use_async_quorum=False and without spares"
            )
        if self._before is not None or self._process_group.parent is not self._group:
            self._rebuild(self._process_group.parent)
        self._before = self._reducer.state_dict()
        failure = self._exchange()
        if failure:
            # Closes the connections: others that wait for this replica need not wait for their deadline.
            self._rebuild(_no_others())
            self._process_group.abort()
            self._manager.report_error(CollectiveError(failure))

    def state_dict(self) -> dict[str, Any]:
        """Return this replica's state after the last step that was applied."""
        return self._with_replicated(dict(self._before or self._reducer.state_dict()))

    def load_state_dict(self, state: Any) -> None:
        """Restore what `state_dict` returned on the same replica.

        Raises:
            ConfigError: the state is of another model or another momentum setting.
        """
        super().load_state_dict(state)
        self._before = None

    # ---- one step -----------------------------------------------------------------------------------

    def _exchange(self) -> str | None:
        """Exchange all gradients; return why the step must not be applied, None if it may."""
        try:
            with transport_failures("the exchange between replicas", self._group):
                for segment in self._layout:
                    self._reducer.push(_bucket(self._parameters[segment.name], segment))
                self._reducer.finish()
        except CollectiveError as error:
            return str(error)  # the error itself would keep the group, and its connections, alive
        return "a gradient is not finite" if self._reducer.last_step_skipped else None

    def _rebuild(self, group: dist.ProcessGroup) -> None:
        """Make a reducer for another group, with the state after the last step that was applied."""
        state = self._before or self._reducer.state_dict()
        self._group, self._before = group, None
        _, self._reducer = self._build(group)
        self._reducer.load_state_dict(self._reducer.inherited_state(state, [state]))

    def _before_step(self, *_: Any) -> None:
        if self._before is None:
            raise UnsupportedSetup(
                "the optimizer steps on gradients that were not exchanged; call average_gradients() between "
                "backward() and step()"
            )

    def _after_step(self, *_: Any) -> None:
        self._before = None

    # ---- replicas that join -------------------------------------------------------------------------

    def _state_to_join_with(self) -> dict[str, Any]:
        return {"settings": self._settings, "state": self.inherited_state(self.state_dict(), [])}

    def _take_over(self, sent: dict[str, Any]) -> None:
        theirs = sent["settings"]
        differing = [name for name, own in self._settings.items() if theirs[name] != own]
        if differing:
            lines = [
                f"  {name}: {theirs[name]} there, {self._settings[name]} here" for name in differing
            ]
            raise ConfigMismatch(
                "this replica's settings are not those of the replicas it joins:\n"
                + "\n".join(lines)
            )
        self.load_state_dict(sent["state"])


def attach_torchft(
    model: nn.Module, config: ReducerConfig, optimizer: "torchft.Optimizer"
) -> FaultTolerantExchange:
    """Exchange the model's gradients between the replicas of torchft's quorum.

    Arguments, errors and collectives as for `FaultTolerantExchange`.
    """
    return FaultTolerantExchange(model, config, optimizer)


def _no_others() -> dist.ProcessGroup:
    return LocalGroup.create(1)[0]


def _trained_parameters(model: nn.Module) -> dict[str, Tensor]:
    parameters: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for name, parameter in parameters.items():
        if isinstance(parameter, DTensor):
            raise UnsupportedSetup(
                f"parameter {name!r} is sharded; replicas must hold whole models of one process each"
            )
    return parameters


def _bucket(parameter: Tensor, segment: Segment) -> GradientBucket:
    gradient = parameter.grad
    if gradient is None or gradient.stride() != segment.stride:
        parameter.grad = torch.zeros_like(parameter).as_strided(segment.shape, segment.stride)
        if gradient is not None:  # None: unused on this replica; others may have used it
            parameter.grad.copy_(gradient)
        gradient = parameter.grad
    flat = gradient.as_strided((segment.numel,), (1,))
    return GradientBucket(buffer=flat, slices=(GradientSlice(segment=segment, gradient=flat),))
