"""Attach a reducer to DistributedDataParallel.

    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9)
    state = gsdist.attach(ddp, GsSgdConfig(momentum="local"), optimizer=optimizer)

DDP's hook only enqueues: one thread per attached model runs the reducer and all its collectives, on a
process group of its own. The autograd thread is never blocked, so collectives inside backward (SyncBatchNorm,
a gather in the loss) cannot dead-lock with the exchange, and sketching overlaps with backward. On a GPU that
thread has a stream of its own, which waits for a bucket's gradients by an event; so may the thread, as it
holds up nobody.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any
from weakref import ref

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.amp.grad_scaler import GradScaler
from torch.autograd import Variable
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from gsdist.collectives import NodeGroups, Nodes, open_group, require_agreement, share_faults
from gsdist.errors import ConfigError, InputTypeError, UnsupportedSetup
from gsdist.integrations.attached import AttachedReducer, split_optimizer
from gsdist.integrations.optimizer import ReplicatedTerms, take_momentum_from
from gsdist.reducers import (
    GradientBucket,
    GradientSlice,
    GsSgdConfig,
    GsSgdPaperConfig,
    ReducerConfig,
    build_hierarchical_reducer,
    build_reducer,
)
from gsdist.sketch import SketchFormat

__all__ = ["GsSgdState", "ReducerState", "attach", "gs_sgd_hook", "reducer_hook"]


class ReducerState(AttachedReducer):
    """Hold a reducer and everything that ties it to one DDP model; the state of `reducer_hook`.

    Supported: parameters of any floating-point type on the CPU or on one GPU, bucket rebuild, `no_sync`,
    `gradient_as_bucket_view`, `static_graph`, `find_unused_parameters`, channels-last parameters, native
    AMP with GradScaler. Not supported: a model on several devices, a second communication hook, `Join`,
    parameters added later.
    """

    def __init__(
        self,
        model: DistributedDataParallel,
        config: ReducerConfig,
        *,
        optimizer: Optimizer | None = None,
        grad_scaler: GradScaler | None = None,
        nodes: Nodes | None = None,
    ) -> None:
        """Check the set-up, agree with all ranks and allocate the reducer's state.

        Must be called on every rank of the model's process group. `optimizer` is needed for
        momentum="local" and for `set_replicated_loss`; `grad_scaler` whenever the loss is scaled. With
        `nodes` gradients are averaged inside each node, and only its first rank exchanges.

        Raises:
            GsdistError: a subclass that says what is wrong, on every rank if any rank finds a fault.

        Collectives: creates a process group, three with `nodes`; some all-gathers.
        """
        # What is no DDP model is refused below, together with all ranks that hold one.
        parent = getattr(model, "process_group", dist.group.WORLD)
        group = open_group(parent=parent)
        with share_faults(group):
            self._parameters = _trained_parameters(model)
            self._grad_scaler = grad_scaler if grad_scaler and grad_scaler.is_enabled() else None
            momentum, weight_decay = split_optimizer(config, optimizer, self._parameters)
        options: Any = {"momentum": momentum, "loss_scaled": self._grad_scaler is not None}
        node_groups = _open_nodes(nodes, group)
        with share_faults(group):
            layout, self._reducer = (
                build_hierarchical_reducer(config, self._parameters, node_groups, **options)
                if node_groups
                else build_reducer(config, self._parameters, group, **options)
            )
        require_agreement(
            {
                "reducer": type(config).__name__,
                **asdict(config),
                "momentum correction": asdict(momentum) if momentum else None,
                "weight_decay": weight_decay,
                "loss scaling": self._grad_scaler is not None,
                "model": layout.fingerprint(),
                "device": layout.device.type,
                "sketch format version": SketchFormat.version,
            },
            group,
            subject="exchange configuration",
        )
        self._segments = {
            id(parameter): segment
            for parameter, segment in zip(self._parameters.values(), layout, strict=True)
        }
        self._replicated = (
            ReplicatedTerms(
                optimizer, self._parameters, momentum=momentum, weight_decay=weight_decay
            )
            if optimizer
            else None
        )
        if momentum and optimizer:
            take_momentum_from(optimizer)
        # Until it has asked torch, a new thread computes with as many threads as OpenMP likes, and rounds so.
        self._worker = ThreadPoolExecutor(
            max_workers=1,
            thread_name_prefix="gsdist-exchange",
            initializer=torch.get_num_threads,
        )
        self._stream = _ExchangeStream.on(layout.device)
        self._model = ref(model)
        self._step: _Step | None = None

    # ---- what users call ----------------------------------------------------------------------------

    def set_mask(self, mask: Mapping[str, Tensor] | None) -> None:
        """Train only the coordinates whose mask is True, from the next step on.

        `mask` maps parameter names to boolean tensors in the parameters' shapes, equal on all ranks;
        parameters not named are trained whole; None removes the mask. Residual and momentum are cleared
        where masked.

        Raises:
            ConfigError: an unknown name, another shape or another dtype.
        """
        for name, kept in (mask or {}).items():
            if name not in self._parameters:
                raise ConfigError(
                    f"the mask names {name!r}, which is no trainable parameter of the model"
                )
            expected = tuple(self._parameters[name].shape)
            if kept.dtype != torch.bool or tuple(kept.shape) != expected:
                raise ConfigError(
                    f"the mask of {name!r} is {kept.dtype} of shape {tuple(kept.shape)}; "
                    f"it must be torch.bool of shape {expected}"
                )
        self._reducer.set_mask(mask)
        if self._replicated:
            self._replicated.set_mask(mask)

    def state_for_new_layout(self) -> dict[str, Any]:
        """Return what of the state still holds when coordinates are cut out of the parameters.

        Cut its tensors as the parameters of their names and load it into the new model's state.
        """
        return self._with_replicated(self._reducer.state_for_new_layout())

    # ---- what DDP calls -----------------------------------------------------------------------------

    def enqueue(self, bucket: GradBucket) -> Future[Tensor]:
        """Hand one bucket to the exchange thread; the future completes at the end of the step."""
        if self._step is None:
            if self._joining():
                raise UnsupportedSetup(
                    "the training loop runs under torch's Join, which expects one all-reduce per bucket and "
                    "cannot stand in for this exchange; give every rank as many batches (drop_last, or a "
                    "sampler that pads)"
                )
            scale = self._grad_scaler.get_scale() if self._grad_scaler else 1.0
            self._step = _Step(loss_scale=scale)
            _at_end_of_backward(partial(_settle, self._step))
        step = self._step
        future = self._stream.future()
        step.results.append((bucket.buffer(), future))
        if bucket.is_last():
            self._step = None
        ready = self._stream.event()
        self._worker.submit(
            self._exchange, step, self._gradient_bucket(bucket), ready, bucket.is_last()
        )
        return future

    def _joining(self) -> bool:
        join = getattr(self._model(), "_join_config", None)
        return bool(join is not None and join.enable)

    def _gradient_bucket(self, bucket: GradBucket) -> GradientBucket:
        buffer = bucket.buffer()
        slices = []
        for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
            segment = self._segments[id(parameter)]
            start = gradient.storage_offset() - buffer.storage_offset()
            slices.append(
                GradientSlice(segment=segment, gradient=buffer[start : start + segment.numel])
            )
        return GradientBucket(buffer=buffer, slices=tuple(slices))

    def _exchange(
        self, step: "_Step", bucket: GradientBucket, ready: torch.cuda.Event | None, last: bool
    ) -> None:
        # Runs on the exchange thread. Futures always complete: an error inside one would reach the user as
        # DDP's complaint about a hook's return value; `_settle` raises it as what it is.
        with self._stream.after(ready):
            try:
                if step.error is None:
                    self._reducer.push(bucket, scale=step.loss_scale)
                    if last:
                        self._reducer.finish()
            except Exception as error:
                step.error = error
            finally:
                if last:
                    for buffer, future in step.results:
                        future.set_result(buffer)


class _ExchangeStream:
    """Order the exchange thread's work on a GPU after backward's and before the optimizer's."""

    def __init__(self, stream: torch.cuda.Stream | None) -> None:
        self._stream = stream

    @classmethod
    def on(cls, device: torch.device) -> "_ExchangeStream":
        """Make a stream; None does on the CPU, where work is done when a call returns."""
        if device.type != "cuda":
            return cls(None)
        return cls(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]

    def future(self) -> "Future[Tensor]":
        """Return a future; who waits for it also waits for what this stream does before it completes."""
        return Future(devices=[self._stream.device]) if self._stream else Future()

    def event(self) -> torch.cuda.Event | None:
        """Mark what the calling thread has asked of the GPU so far."""
        return (
            torch.cuda.current_stream(self._stream.device).record_event() if self._stream else None
        )

    @contextmanager
    def after(self, event: torch.cuda.Event | None) -> Iterator[None]:
        """Work in this stream, after an event."""
        if self._stream is None:
            yield
            return
        assert event is not None
        self._stream.wait_event(event)
        with torch.cuda.device(self._stream.device), torch.cuda.stream(self._stream):
            yield


@dataclass(slots=True)
class _Step:
    """Hold what belongs to one backward pass."""

    loss_scale: float
    results: list[tuple[Tensor, Future[Tensor]]] = field(default_factory=list)
    error: Exception | None = None


def _at_end_of_backward(callback: Callable[[], None]) -> None:
    Variable._execution_engine.queue_callback(callback)


def _settle(step: _Step) -> None:
    # Queued once more so that it runs after DDP's own callback, which waits for the futures: DDP must have
    # finished the step before an error is raised, or the model could not be used again.
    _at_end_of_backward(partial(_raise_error, step))


def _raise_error(step: _Step) -> None:
    if step.error is not None:
        raise step.error


class GsSgdState(ReducerState):
    """Hold the state of `gs_sgd_hook`, for users who register hooks themselves."""

    def __init__(
        self,
        model: DistributedDataParallel,
        config: GsSgdConfig | GsSgdPaperConfig,
        *,
        optimizer: Optimizer | None = None,
        grad_scaler: GradScaler | None = None,
    ) -> None:
        """Check that the config is gs-SGD's; otherwise as `ReducerState`."""
        if not isinstance(config, GsSgdConfig | GsSgdPaperConfig):
            raise InputTypeError(
                f"config is a {type(config).__name__}; it must be a GsSgdConfig or GsSgdPaperConfig"
            )
        super().__init__(model, config, optimizer=optimizer, grad_scaler=grad_scaler)


def reducer_hook(state: ReducerState, bucket: GradBucket) -> Future[Tensor]:
    """Exchange one DDP bucket through the state's reducer; a DDP communication hook."""
    return state.enqueue(bucket)


gs_sgd_hook = reducer_hook
"""The hook to register with a `GsSgdState`."""


def attach(
    model: DistributedDataParallel,
    config: ReducerConfig,
    *,
    optimizer: Optimizer | None = None,
    grad_scaler: GradScaler | None = None,
    nodes: Nodes | None = None,
) -> ReducerState:
    """Exchange the model's gradients by the configured method from now on.

    Arguments, errors and collectives as for `ReducerState`. Call it once, on every rank, before the first
    backward pass.
    """
    state = ReducerState(model, config, optimizer=optimizer, grad_scaler=grad_scaler, nodes=nodes)
    model.register_comm_hook(state, reducer_hook)
    return state


# ---- checks and construction ---------------------------------------------------------------------------


def _trained_parameters(model: DistributedDataParallel) -> dict[str, Tensor]:
    if not isinstance(model, DistributedDataParallel):
        raise UnsupportedSetup(
            f"model is a {type(model).__name__}; attach takes a DistributedDataParallel model, wrap it first"
        )
    if getattr(model, "_comm_hooks", None):
        raise UnsupportedSetup("the model already has a communication hook; DDP allows only one")
    for name, module in model.module.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
            raise UnsupportedSetup(
                f"module {name!r} produces sparse gradients, which cannot be exchanged; build it with "
                "sparse=False"
            )
    parameters = {
        name: parameter
        for name, parameter in model.module.named_parameters()
        if parameter.requires_grad and name not in model.parameters_to_ignore
    }
    for name, parameter in parameters.items():
        if parameter.device.type not in ("cpu", "cuda"):
            raise UnsupportedSetup(
                f"parameter {name!r} is on {parameter.device}; parameters are exchanged on the CPU or on a "
                "CUDA device"
            )
    return parameters


def _open_nodes(nodes: Nodes | None, group: dist.ProcessGroup) -> NodeGroups | None:
    require_agreement({"nodes": nodes and list(nodes.sizes)}, group, subject="division into nodes")
    if nodes is None:
        return None
    world_size = dist.get_world_size(group)
    if nodes.world_size != world_size:
        raise ConfigError(
            f"nodes of {list(nodes.sizes)} workers hold {nodes.world_size}, but the model's process group "
            f"has {world_size}; give the size of every node of the job"
        )
    return NodeGroups.open(nodes, group)
