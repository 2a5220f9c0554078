"""Attach a reducer to hybrid sharding: FSDP2 inside a node, a compressed exchange between nodes.

    mesh = init_device_mesh("cuda", (nodes, gpus), mesh_dim_names=("replicate", "shard"))
    fully_shard(model, mesh=mesh["shard"])  # not the whole mesh: between nodes gsdist averages
    optimizer = torch.optim.AdamW(model.parameters())
    exchange = gsdist.attach_hybrid_shard(model, gsdist.GsSgdConfig(), mesh["replicate"], optimizer=optimizer)

FSDP averages gradients inside a node, over the fast links, and leaves every worker its shard. Before the
optimizer steps, each worker exchanges its shards with the workers that hold the same ones on other nodes; so
residual and momentum are as large as a shard. It is one exchange after backward, which does not overlap with
it. Clip the averaged gradient by calling `average_gradients` before `clip_grad_norm_`.
"""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.optim import Optimizer

from gsdist.collectives import open_group, require_agreement, share_faults
from gsdist.errors import UnsupportedSetup
from gsdist.integrations.attached import AttachedReducer, split_optimizer
from gsdist.integrations.optimizer import ReplicatedTerms, take_momentum_from
from gsdist.reducers import GradientBucket, GradientSlice, ReducerConfig, build_reducer
from gsdist.reducers.layout import Segment

__all__ = ["HybridShardExchange", "attach_hybrid_shard"]


class HybridShardExchange(AttachedReducer):
    """Average the gradients of sharded parameters between the replicas of a mesh.

    Supported: every parameter sharded by `fully_shard` on a one-dimensional mesh, accumulation with
    `set_requires_gradient_sync`, mixed precision of FSDP, any optimizer. Not supported: a GradScaler, whose
    verdict would differ between workers; parameters that FSDP ignores; `fully_shard` on the whole mesh.
    """

    def __init__(
        self,
        model: nn.Module,
        config: ReducerConfig,
        mesh: DeviceMesh,
        *,
        optimizer: Optimizer,
    ) -> None:
        """Check the set-up, agree with the other replicas and allocate the reducer's state.

        Must be called on every rank. `mesh` is one-dimensional and holds the replicas of this rank's shard.

        Raises:
            GsdistError: a subclass that says what is wrong, on every replica if one finds a fault.

        Collectives: creates a process group; some all-gathers.
        """
        group = open_group(parent=mesh.get_group())
        with share_faults(group):
            self._parameters = _sharded_parameters(model, mesh)
            shards = {name: _own_shard(p.detach(), True) for name, p in self._parameters.items()}
            momentum, weight_decay = split_optimizer(config, optimizer, self._parameters)
            layout, self._reducer = build_reducer(config, shards, group, momentum=momentum)
        require_agreement(
            {
                "reducer": type(config).__name__,
                **asdict(config),
                "momentum correction": asdict(momentum) if momentum else None,
                "weight_decay": weight_decay,
                "shards": layout.fingerprint(),
            },
            group,
            subject="exchange configuration",
        )
        self._segments = {segment.name: segment for segment in layout}
        self._averaged = False
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)
        self._replicated = ReplicatedTerms(
            optimizer, self._parameters, momentum=momentum, weight_decay=weight_decay
        )
        if momentum:
            take_momentum_from(optimizer)

    @torch.no_grad()
    def average_gradients(self) -> None:
        """Exchange what backward left in the parameters' gradients; the optimizer's step does it otherwise.

        Raises:
            GsdistError: what the exchange raises, alike on every replica.

        Collectives: those of the method, between the replicas of this rank's shard.
        """
        for name, segment in self._segments.items():
            self._reducer.push(self._bucket(self._parameters[name], segment))
        self._reducer.finish()
        self._averaged = True

    def _bucket(self, parameter: DTensor, segment: Segment) -> GradientBucket:
        if parameter.grad is None:  # unused on this worker; others may have used it
            parameter.grad = torch.zeros_like(parameter)
        gradient = _own_shard(parameter.grad, False).view(-1)
        return GradientBucket(
            buffer=gradient, slices=(GradientSlice(segment=segment, gradient=gradient),)
        )

    def _before_step(self, *_: Any) -> None:
        if not self._averaged:
            self.average_gradients()

    def _after_step(self, *_: Any) -> None:
        self._averaged = False


def attach_hybrid_shard(
    model: nn.Module, config: ReducerConfig, mesh: DeviceMesh, *, optimizer: Optimizer
) -> HybridShardExchange:
    """Exchange the gradients of a sharded model between its replicas from now on.

    Arguments, errors and collectives as for `HybridShardExchange`.
    """
    return HybridShardExchange(model, config, mesh, optimizer=optimizer)


def _sharded_parameters(model: nn.Module, mesh: DeviceMesh) -> dict[str, DTensor]:
    if mesh.ndim != 1:
        raise UnsupportedSetup(
            f'the mesh has {mesh.ndim} dimensions; pass the one of the replicas, as in mesh["replicate"]'
        )
    replicas = set(mesh.mesh.flatten().tolist())
    found: dict[str, DTensor] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if not isinstance(parameter, DTensor):
            raise UnsupportedSetup(
                f"parameter {name!r} is not sharded; apply fully_shard to the whole model first, without "
                "ignored_params"
            )
        on, placements = parameter.device_mesh, parameter.placements
        shared = replicas & set(on.mesh.flatten().tolist())
        if on.ndim != 1 or not isinstance(placements[0], Shard) or len(shared) != 1:
            raise UnsupportedSetup(
                f"parameter {name!r} is placed as {placements} on {on}, replicas on {mesh}; apply "
                'fully_shard on the mesh of the shards only, as in fully_shard(model, mesh=mesh["shard"])'
            )
        if (
            parameter.to_local().numel()
        ):  # the last workers' shards of a small parameter can be empty
            found[name] = parameter
    return found


def _own_shard(tensor: Tensor, trained: bool) -> Tensor:
    assert isinstance(tensor, DTensor)
    return tensor.to_local().requires_grad_(trained)
