"""Exchange gradients by Sketched-SGD: the algorithm of gs-SGD around a parameter server, rank 0.

Source: Sketched-SGD (Ivkin et al., arXiv 1903.04488, as it was run in section 5). Workers send their tables
to the server, which adds them up and names p2*k candidates; workers send the exact values of these; the
server keeps the k largest sums. It is here to be compared with: the server's link carries P times what a
worker's does. Symbols and fields as in `gsdist.reducers.gs_sgd`.

Collectives per step: a gather of tables and a broadcast of candidates (both repeated in float32 when a
half-precision table overflowed); a gather of exact values, dense set and agreement lanes; a broadcast of
the result.
"""

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from gsdist.collectives import broadcast_from, gather_to
from gsdist.reducers.compressed import Update
from gsdist.reducers.finite import all_finite
from gsdist.reducers.gs_sgd_paper import GsSgdPaperReducer
from gsdist.reducers.gs_sgd_paper_config import GsSgdPaperConfig
from gsdist.reducers.sparse_entries import index_dtype, pack_entries, unpack_entries
from gsdist.sketch.on_device import top_k

__all__ = ["SketchedSgdConfig", "SketchedSgdReducer"]

_SERVER = 0
_HEADER_WORDS = 2


class _Verdict(IntEnum):
    GO_ON = 0
    GIVE_UP = 1
    REPEAT_EXACTLY = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class SketchedSgdConfig(GsSgdPaperConfig):
    """Configure Sketched-SGD; the fields mean what they mean for gs-SGD."""


class SketchedSgdReducer(GsSgdPaperReducer):
    """Average the heavy coordinates that a parameter server finds."""

    def _exchange(self) -> Update | None:
        self._complete_sketch()
        verdict, candidates = self._find_candidates(exact=False)
        if verdict is _Verdict.REPEAT_EXACTLY:
            verdict, candidates = self._find_candidates(exact=True)
        if verdict is not _Verdict.GO_ON:
            return None
        return self._fetch_exact_sums(candidates)

    def _find_candidates(self, *, exact: bool) -> tuple[_Verdict, Tensor]:
        """Let the server choose from the sum of all tables; every rank gets its answer."""
        flag = torch.tensor([float(not self._finite)], device=self._device)
        wire = self._wire.pack(self._sketch.table, flag, exact=exact)
        size, count = self._layout.compressed_size, self._sizes.candidates
        index_words = count * (index_dtype(size).itemsize // 4)
        answer = self._zeros(_HEADER_WORDS + index_words, dtype=torch.int32)
        received = self._gather(wire, "gather_tables")
        if received:
            with self._recorder.phase("select"):
                answer = self._choose_candidates(received, index_dtype(size))
        self._broadcast(answer, "broadcast_candidates")
        self._wire.peak = float(answer[1:_HEADER_WORDS].view(torch.float32))
        indices = answer[_HEADER_WORDS:].view(index_dtype(size)).to(torch.int64)
        return _Verdict(int(answer[0])), indices

    def _choose_candidates(self, tables: list[Tensor], dtype: torch.dtype) -> Tensor:
        flags = sum(float(table[-1]) for table in tables)
        summed = torch.stack([table.float() for table in tables]).sum(dim=0).to(tables[0].dtype)
        verdict, peak = _Verdict.GO_ON, self._wire.peak
        if flags:
            verdict = _Verdict.GIVE_UP
        elif not all_finite(summed):
            half = summed.dtype != torch.float32
            verdict = _Verdict.REPEAT_EXACTLY if half else _Verdict.GIVE_UP
        candidates = torch.arange(self._sizes.candidates, device=self._device)
        if verdict is _Verdict.GO_ON:
            self._wire.unpack(summed, self._sketch.table)
            self._wire.remember(self._sketch.table)
            candidates = self._sketch.heavy_coordinates(self._sizes.candidates)
            peak = self._wire.peak
        header = torch.tensor([int(verdict), 0], dtype=torch.int32, device=self._device)
        header[1:].view(torch.float32).fill_(peak)
        return torch.cat([header, candidates.to(dtype).view(torch.int32)])

    def _fetch_exact_sums(self, candidates: Tensor) -> Update | None:
        """Sum the candidates' values at the server, which keeps the largest; every rank gets them."""
        tail = torch.cat([self._dense, self._flag_and_lanes(candidates)])
        size, count = self._layout.compressed_size, min(self._sizes.selected, candidates.numel())
        no_entries = (self._zeros(count, dtype=torch.int64), self._zeros(count))
        result = torch.cat([tail.view(torch.int32), pack_entries(no_entries, size)])
        received = self._gather(torch.cat([self._corrected[candidates], tail]), "gather_values")
        if received:
            with self._recorder.phase("select"):
                summed = torch.stack(received).sum(dim=0)
                sums, summed_tail = summed[: candidates.numel()], summed[candidates.numel() :]
                best = top_k(sums, count)
                entries = pack_entries((candidates[best], sums[best]), size)
                result = torch.cat([summed_tail.view(torch.int32), entries])
        self._broadcast(result, "broadcast_result")
        summed_tail = result[: tail.numel()].view(torch.float32)
        selected, sums = unpack_entries(result[tail.numel() :], size)
        dense_sums = summed_tail[: self._layout.dense_size]
        finite = all_finite(sums) and all_finite(dense_sums)
        if not self._accepts(summed_tail[dense_sums.numel() :], finite=finite):
            return None
        return Update(sums=sums, indices=selected, sent=selected, dense_sums=dense_sums)

    def _gather(self, buffer: Tensor, phase: str) -> list[Tensor]:
        self._recorder.issued("gather", buffer)
        with self._recorder.phase(phase):
            return gather_to(_SERVER, buffer, self._group, phase=f"step {self._step}, {phase}")

    def _broadcast(self, buffer: Tensor, phase: str) -> None:
        serves = self._rank == _SERVER
        self._recorder.issued("tree_broadcast", buffer, sends=serves)
        with self._recorder.phase(phase):
            broadcast_from(_SERVER, buffer, self._group, phase=f"step {self._step}, {phase}")
