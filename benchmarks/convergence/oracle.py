"""Select as no method can: the exact top k of the summed gradient, which nobody has.

The sum is taken outside the count of bytes. What is counted is what an exchange would cost that knew the
answer: an all-reduce of k indices and k exact values, dense set and agreement lanes. It is a ceiling for all
methods that choose coordinates, not a method.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist

from gsdist.reducers.compressed import CompressedReducer, Update
from gsdist.reducers.config import SparseConfig
from gsdist.reducers.layout import FlatLayout
from gsdist.reducers.protocol import MomentumCorrection
from gsdist.sketch.select import top_k

__all__ = ["OracleConfig", "OracleReducer"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OracleConfig(SparseConfig):
    """Configure the oracle."""


class OracleReducer(CompressedReducer):
    """Average the k coordinates whose summed corrected gradients are largest."""

    def __init__(
        self,
        layout: FlatLayout,
        config: OracleConfig,
        group: dist.ProcessGroup | None = None,
        *,
        momentum: MomentumCorrection | None = None,
    ) -> None:
        super().__init__(layout, config, group, momentum=momentum)
        self._config = config

    def _exchange(self) -> Update | None:
        total = self._corrected.clone()
        dist.all_reduce(total, group=self._group)
        count = min(self._config.selected_at(self._step, self._layout), total.numel())
        finite = bool(torch.isfinite(total).all())
        # What is not finite has no order; all ranks find so, and give the step up below.
        chosen = top_k(total, count) if finite else torch.arange(count)
        self._recorder.issued("ring_all_reduce", chosen.to(torch.int32))
        reduced = self._reduce_values(chosen)
        if reduced is None:
            return None
        sums, dense_sums = reduced
        return Update(sums=sums, indices=chosen, sent=chosen, dense_sums=dense_sums)
