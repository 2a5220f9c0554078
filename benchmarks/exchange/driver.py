"""Feed a reducer flat gradients without DDP, all parameters in one bucket."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.exchange.methods import Config, build_method, cycle_of
from gsdist.collectives.cost_model import Transfer
from gsdist.reducers import GradientBucket

__all__ = ["Driver", "Exchange"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """Say what one exchange took on this rank."""

    seconds: float
    cpu_seconds: float
    """Of all threads of this process."""
    local_cpu_seconds: float
    """Of the thread that calls the reducer: its computing, without the backend's threads."""
    phases: dict[str, float]
    """Seconds by the reducer's phases."""
    payload_bytes: int
    """Bytes this rank handed to collectives."""
    transfers: tuple[Transfer, ...]
    """The collectives; of all exchanges if this is a mean."""
    exchanges: int = 1
    """How many exchanges this is the mean of."""

    @classmethod
    def mean(cls, every: "Sequence[Exchange]") -> "Exchange":
        """Return the mean of some exchanges."""
        count = len(every)
        names = {name for one in every for name in one.phases}
        return cls(
            seconds=sum(one.seconds for one in every) / count,
            cpu_seconds=sum(one.cpu_seconds for one in every) / count,
            local_cpu_seconds=sum(one.local_cpu_seconds for one in every) / count,
            phases={n: sum(one.phases.get(n, 0.0) for one in every) / count for n in names},
            payload_bytes=round(sum(one.payload_bytes for one in every) / count),
            transfers=tuple(transfer for one in every for transfer in one.transfers),
            exchanges=count,
        )


class Driver:
    """Own one reducer and the buffer it works on."""

    def __init__(
        self, config: Config, shapes: Mapping[str, Sequence[int]], group: dist.ProcessGroup
    ) -> None:
        """Build the reducer for parameters of these shapes.

        Raises:
            GsdistError: the shapes or settings do not fit the method.
        """
        parameters = {
            name: torch.nn.Parameter(torch.empty(shape)) for name, shape in shapes.items()
        }
        self.layout, self.reducer = build_method(config, parameters, group)
        self.settling, self.period = cycle_of(config, parameters)
        self.buffer = torch.empty(self.layout.numel)
        self._bucket = GradientBucket.whole(self.layout, self.buffer)

    def exchange(self) -> Exchange:
        """Turn the buffer's gradient into the average over all ranks."""
        before = self.reducer.statistics().seconds
        cpu, local, start = time.process_time(), time.thread_time(), time.perf_counter()
        self.reducer.push(self._bucket)
        self.reducer.finish()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        local = time.thread_time() - local
        after = self.reducer.statistics()
        return Exchange(
            seconds=seconds,
            cpu_seconds=cpu,
            local_cpu_seconds=local,
            phases={n: total - before.get(n, 0.0) for n, total in after.seconds.items()},
            payload_bytes=after.payload_bytes_last_step,
            transfers=after.transfers_last_step,
        )

    def compressed_parts(self) -> list[Tensor]:
        """View the buffer's compressed parameters."""
        return [s.gradient for s in self._bucket.slices if s.segment.compressed]

    def residual(self) -> Tensor:
        """Return the residual in the buffer's order; zero where the method keeps none."""
        kept = self.reducer.state_for_new_layout().get("residual", {})
        return torch.cat(
            [
                kept[segment.name].flatten() if segment.name in kept else torch.zeros(segment.numel)
                for segment in self.layout
            ]
        )
