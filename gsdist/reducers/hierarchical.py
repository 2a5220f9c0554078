"""Average gradients inside each node, and let one worker per node exchange the averages with any method.

Nodes are what shares a fast link. Their leaders alone hold residual and momentum: to the method between them
a node is one worker, with the mean gradient of its ranks (weighted, where nodes differ in size, so that the
result is still the mean over all ranks).

Collectives per step: inside each node one all-reduce per pushed bucket, a broadcast of the leader's verdict
and one of every bucket; between the leaders those of the method.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from gsdist.collectives import NodeGroups, all_reduce_sum, broadcast_from, rank_of
from gsdist.errors import CollectiveError, ConfigError, GsdistError, NonFiniteGradient
from gsdist.reducers.layout import FlatLayout
from gsdist.reducers.protocol import ExchangeStatistics, GradientBucket, Reducer
from gsdist.reducers.statistics import StatisticsRecorder

__all__ = ["HierarchicalReducer"]

_LEADER = 0


class _Verdict(IntEnum):
    APPLIED = 0
    SKIPPED = 1
    NOT_FINITE = 2
    FAILED = 3


class HierarchicalReducer:
    """Reduce inside a node, then between nodes by the reducer that the node's leader holds."""

    def __init__(self, layout: FlatLayout, groups: NodeGroups, between: Reducer | None) -> None:
        """Take the leaders' reducer, given exactly on ranks that lead a node."""
        assert (between is None) == (groups.leaders is None)
        self._sizes = groups.nodes.sizes
        self._within = groups.within
        self._between = between
        self._device = layout.device
        self._weight = len(self._sizes) / groups.nodes.world_size
        self._pending: list[GradientBucket] = []
        self._failure: GsdistError | None = None
        self._recorder = StatisticsRecorder(dense_bytes_per_step=4 * layout.numel)

    def push(self, bucket: GradientBucket, *, scale: float = 1.0) -> None:
        """Average one bucket inside the node; leaders hand it on."""
        with self._recorder.phase("node_allreduce"):
            total = bucket.buffer.to(torch.float32)
            all_reduce_sum(total, self._within, phase="the average inside the node")
            torch.mul(total, self._weight, out=total)
            bucket.buffer.copy_(total)
        self._pending.append(bucket)
        if self._between is not None and self._failure is None:
            try:
                self._between.push(bucket, scale=scale)
            except GsdistError as error:  # the node's other ranks learn of it in `finish`
                self._failure = error

    def finish(self) -> None:
        """Complete the exchange between nodes and give the result to all ranks of this node.

        Raises:
            NonFiniteGradient: some rank's gradient is not finite and the policy of the method is "raise".
            GsdistError: what else the method raises; CollectiveError on ranks that lead no node.
        """
        verdict = self._finish_between() if self._between is not None else _Verdict.APPLIED
        word = torch.tensor([int(verdict)], device=self._device)
        with self._recorder.phase("node_broadcast"):
            broadcast_from(_LEADER, word, self._within, phase="the verdict inside the node")
            verdict = _Verdict(int(word))
            pending, self._pending = self._pending, []
            if verdict in (_Verdict.APPLIED, _Verdict.SKIPPED):
                for bucket in pending:
                    # as bytes: not every backend broadcasts every dtype
                    raw = bucket.buffer.view(torch.uint8)
                    broadcast_from(_LEADER, raw, self._within, phase="the result inside the node")
        self._recorder.end_step(skipped=verdict is not _Verdict.APPLIED)
        self._raise(verdict)

    def _finish_between(self) -> _Verdict:
        assert self._between is not None
        try:
            if self._failure is None:
                self._between.finish()
                return _Verdict.SKIPPED if self._between.last_step_skipped else _Verdict.APPLIED
        except GsdistError as error:
            self._failure = error
        return (
            _Verdict.NOT_FINITE if isinstance(self._failure, NonFiniteGradient) else _Verdict.FAILED
        )

    def _raise(self, verdict: _Verdict) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        where = f"rank {rank_of(self._within)} of its node"
        if verdict is _Verdict.NOT_FINITE:
            raise NonFiniteGradient(
                f"{where}: some rank's gradient holds NaN or infinity; nothing was changed. The node's first "
                "rank says more"
            )
        if verdict is _Verdict.FAILED:
            raise CollectiveError(
                f"{where}: the exchange between nodes failed; the node's first rank says why"
            )

    @property
    def last_step_skipped(self) -> bool:
        """Tell whether all ranks gave the last step up because a gradient was not finite."""
        return self._recorder.last_step_skipped

    def statistics(self) -> ExchangeStatistics:
        """Return the counters of this rank; bytes and collectives are those between nodes only."""
        own = self._recorder.snapshot(residual_norm=0.0)
        if self._between is None:
            return own
        between = self._between.statistics()
        return replace(between, seconds={**between.seconds, **own.seconds})

    def set_mask(self, mask: Mapping[str, Tensor] | None) -> None:
        """Mask what leaders exchange, and so what all ranks get."""
        if self._between is not None:
            self._between.set_mask(mask)

    def state_dict(self) -> dict[str, Any]:
        """Return the nodes and, on leaders, the method's state between them."""
        return self._with_nodes(self._between.state_dict() if self._between else None)

    def state_for_new_layout(self) -> dict[str, Any]:
        """Return the same with what of the method's state still holds."""
        return self._with_nodes(self._between.state_for_new_layout() if self._between else None)

    def _with_nodes(self, between: dict[str, Any] | None) -> dict[str, Any]:
        state = {"nodes": list(self._sizes), "statistics": self._recorder.state_dict()}
        return state if between is None else {**state, "between": between}

    def inherited_state(
        self, first: Mapping[str, Any], states: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Refuse: which ranks hold a residual depends on the nodes.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "with nodes, residuals cannot be taken over by another number of workers; start as many on the "
            'same nodes, or set residual to "reset"'
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned on this rank.

        Raises:
            ConfigError: the state is of other nodes, whose leaders were other ranks, or of no nodes.
        """
        saved = state.get("nodes")
        if saved != list(self._sizes):
            raise ConfigError(
                f"the saved state is of nodes of {saved} workers, this run has nodes of {list(self._sizes)}; "
                "residuals lie with the nodes' first ranks, so start it on the same nodes"
            )
        self._recorder.load_state_dict(state["statistics"])
        if self._between is not None:
            self._between.load_state_dict(state["between"])
