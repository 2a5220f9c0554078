"""Exchange gradients by gs-SGD: sum Count-Sketches, agree on the heavy coordinates, fetch their exact sums.

Source: gs-SGD (arXiv 2108.06004), of which only the abstract was at hand; this is a reconstruction, see
docs/decisions.md. The exact second round follows Sketched-SGD (arXiv 1903.04488, section 3).

=======  ==========================================================================
symbol   here
=======  ==========================================================================
e_i      residual: what this worker has not yet sent
u_i      momentum of this worker's gradient (momentum="local" only)
v_i      corrected gradient, e_i + u_i (or e_i + g_i), what the step would send
W_i      preselected coordinates: the p1*k largest of v_i
S        merged table: the sum of all workers' sketches
C        candidates: the p2*k coordinates with the largest estimates in S
K        selected coordinates: the k of C with the largest exact sums
p1, p2   preselect_factor, candidate_factor
=======  ==========================================================================

Collectives per step, all on one process group and in this order: an all-reduce of the table and a non-finite
flag; an all-reduce of exact values, dense set and agreement lanes. When a half-precision table overflows in
the sum, the first is repeated in float32.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gsdist.collectives import tree_all_reduce_sum
from gsdist.reducers.compressed import CompressedReducer, Update
from gsdist.reducers.finite import all_finite
from gsdist.reducers.gs_sgd_paper_config import ExchangeSizes, GsSgdPaperConfig
from gsdist.reducers.layout import Segment
from gsdist.reducers.wire import SumWire
from gsdist.sketch import SketchFormat
from gsdist.sketch.on_device import Sketch, new_sketch, top_k

__all__ = ["GsSgdPaperReducer"]

_USELESS_SHARE = 0.25
"""Share of the dense bytes above which a user is warned."""


class GsSgdPaperReducer(CompressedReducer[GsSgdPaperConfig]):
    """Average the heavy coordinates of the summed gradient, keep the rest for later steps."""

    def _allocate(self) -> None:
        self._wire = SumWire(self._config.wire_dtype)
        self._sizes = ExchangeSizes.at(0, self._config, self._layout)
        self._sketch = self._new_sketch()
        self._warn_if_useless()

    def _warn_if_useless(self) -> None:
        config, sizes = self._config, ExchangeSizes.at(2**62, self._config, self._layout)
        cell_bytes = 4 if config.wire_dtype == "float32" else 2
        step_bytes = cell_bytes * config.rows * sizes.columns + 4 * sizes.candidates
        share = step_bytes / (4 * self._layout.compressed_numel)
        if share > _USELESS_SHARE and self._rank == 0:
            warnings.warn(
                f"gs-SGD sends {share:.0%} of the bytes of a dense exchange with density="
                f"{config.density}, rows={config.rows}, column_factor={config.column_factor}, "
                f"candidate_factor={config.candidate_factor}; lower them, or use the dense reducer",
                stacklevel=4,
            )

    def _new_sketch(self) -> Sketch:
        sketch_format = SketchFormat(
            rows=self._config.rows,
            columns=self._sizes.columns,
            seed=self._config.seed,
            dimension=self._layout.compressed_size,
        )
        return new_sketch(sketch_format, self._device)

    def _begin_step(self) -> None:
        self._sizes = ExchangeSizes.at(self._step, self._config, self._layout)
        if self._sketch.format.columns == self._sizes.columns:
            self._sketch.zero_()
        else:
            self._sketch = self._new_sketch()

    @property
    def _sketches_on_push(self) -> bool:
        whole_vector = self._config.preselect_factor == 0
        return whole_vector and not self._config.deterministic and not self._warming_up

    def _absorbed(self, segment: Segment) -> None:
        if self._sketches_on_push:
            with self._recorder.phase("encode"):
                self._sketch.encode(segment.flat_view(self._corrected), segment.offset)

    def _exchange(self) -> Update | None:
        self._complete_sketch()
        if not self._merge_tables():
            return None
        with self._recorder.phase("select"):
            candidates = self._sketch.heavy_coordinates(self._sizes.candidates)
        reduced = self._reduce_values(candidates)
        if reduced is None:
            return None
        sums, dense_sums = reduced
        with self._recorder.phase("select"):
            best = top_k(sums, min(self._sizes.selected, sums.numel()))
            selected = candidates[best]
        return Update(sums=sums[best], indices=selected, sent=selected, dense_sums=dense_sums)

    def _complete_sketch(self) -> None:
        # Tables travel before the dense set and leave a scale behind; a step given up must leave nothing.
        self._finite = bool(self._finite) and all_finite(self._dense)
        if self._sketches_on_push or not self._finite:  # selection needs finite values
            return
        with self._recorder.phase("encode"):
            if self._config.preselect_factor == 0:
                self._sketch.encode(self._corrected)
            else:
                chosen = top_k(self._corrected, self._sizes.preselected)
                self._sketch.encode_sparse(chosen, self._corrected[chosen])

    def _merge_tables(self) -> bool:
        """Sum the tables of all ranks; tell whether the step may go on, alike on every rank."""
        table = self._sketch.table
        flag = torch.tensor([float(not self._finite)], device=self._device)
        buffer = self._wire.pack(table, flag)
        self._all_reduce(buffer, "allreduce_table")
        finite = all_finite(buffer)
        if not finite and buffer.dtype != torch.float32 and buffer[-1].item() == 0:
            self._recorder.repeated()
            buffer = self._wire.pack(table, flag, exact=True)
            self._all_reduce(buffer, "allreduce_table")
            finite = all_finite(buffer)
        if not finite or buffer[-1].item() != 0:
            return False
        self._wire.unpack(buffer, table)
        self._wire.remember(table)
        return True

    def _all_reduce(self, buffer: Tensor, phase: str) -> None:
        if self._config.collective == "native":
            super()._all_reduce(buffer, phase)
            return
        self._recorder.issued("tree_all_reduce", buffer)
        with self._recorder.phase(phase):
            tree_all_reduce_sum(buffer, self._group, phase=f"step {self._step}, {phase}")

    def state_dict(self) -> dict[str, Any]:
        """Add what sets the table's scale on the wire."""
        return {**super().state_dict(), "table_peak": self._wire.peak}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned on this rank."""
        super().load_state_dict(state)
        self._wire.peak = float(state.get("table_peak", 0.0))
