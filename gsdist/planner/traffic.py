"""Say what each exchange method sends per step, from its settings and the model's layout alone.

What a step sends is what the reducer issues (`ExchangeStatistics.transfers_last_step`) after warm-up; tests
hold both together. Two sizes depend on the gradients: proposals of several workers are taken to be all
different, and the regions of Ok-Topk to need no further balancing.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from gsdist.collectives.cost_model import Cost, Link, Transfer, cost_of, seconds_of
from gsdist.errors import InputTypeError
from gsdist.reducers import (
    DenseConfig,
    FlatLayout,
    GsSgdConfig,
    GsSgdPaperConfig,
    GTopKConfig,
    OkTopKConfig,
    PowerSgdConfig,
    RandomKConfig,
    ReducerConfig,
    SketchedSgdConfig,
    TopKConfig,
)
from gsdist.reducers.agreement_lanes import LANES
from gsdist.reducers.gs_sgd_config import ByteBudget
from gsdist.reducers.gs_sgd_paper_config import ExchangeSizes
from gsdist.reducers.sparse_entries import index_dtype
from gsdist.reducers.wire import torch_dtype

__all__ = ["Step", "cost_per_step", "mean_seconds", "steps_of"]

_WORD = 4
_LATE = 2**62
"""A step after warm-up and all density ladders."""
Step = tuple[int, tuple[Transfer, ...]]
"""How many steps of a period there are of a kind, and the collectives of one."""


def cost_per_step(config: ReducerConfig, layout: FlatLayout, ranks: int) -> Cost:
    """Return bytes of the busiest link and messages of one step, in the mean of many.

    Raises:
        ConfigError: the settings do not fit the layout.
    """
    steps = steps_of(config, layout, ranks)
    count = sum(times for times, _ in steps)
    costs = [(times / count, cost_of(transfers, ranks)) for times, transfers in steps]
    return Cost(
        bytes=sum(share * cost.bytes for share, cost in costs),
        messages=sum(share * cost.messages for share, cost in costs),
    )


def mean_seconds(steps: Sequence[Step], ranks: int, link: Link) -> float:
    """Return the predicted seconds on the wire of one step, in the mean of a period."""
    count = sum(times for times, _ in steps)
    return sum(times * seconds_of(transfers, ranks, link) for times, transfers in steps) / count


def steps_of(config: ReducerConfig, layout: FlatLayout, ranks: int) -> tuple[Step, ...]:
    """Return the kinds of steps that a method repeats.

    Raises:
        InputTypeError: `config` is no reducer configuration.
        ConfigError: the settings do not fit the layout.
    """
    if type(config) not in _STEPS:
        raise InputTypeError(f"config is a {type(config).__name__}, which is no reducer's")
    return _STEPS[type(config)](config, layout, ranks)


def _once(*transfers: Transfer) -> tuple[Step, ...]:
    return ((1, transfers),)


def _tail(layout: FlatLayout) -> int:
    """Return the bytes that travel beside a method's own: dense set, finite flag, agreement lanes."""
    return _WORD * (layout.dense_size + 1 + LANES)


def _entry(layout: FlatLayout) -> int:
    """Return the bytes of an index and its value."""
    return index_dtype(layout.compressed_size).itemsize + _WORD


def _all_reduce(size: float) -> Transfer:
    return Transfer(kind="ring_all_reduce", size=size)


def _dense(config: DenseConfig, layout: FlatLayout, ranks: int) -> tuple[Step, ...]:
    return _once(_all_reduce(torch_dtype(config.wire_dtype).itemsize * layout.numel))


def _gs_sgd(config: GsSgdConfig, layout: FlatLayout, ranks: int) -> tuple[Step, ...]:
    budget = ByteBudget.of(config, layout)
    item = torch_dtype(config.wire_dtype).itemsize
    second = (
        1
        + LANES
        + sum(budget.ranks[segment.name] * segment.matrix_shape[1] for segment in layout.compressed)
    )
    refresh = (
        _all_reduce(item * (budget.refresh_words - second)),
        _all_reduce(item * second),
    )
    between = (_all_reduce(item * (budget.coefficients + budget.overhead_words)),)
    return ((1, refresh), (budget.interval - 1, between))


def _gs_sgd_paper(config: GsSgdPaperConfig, layout: FlatLayout, ranks: int) -> tuple[Step, ...]:
    sizes = ExchangeSizes.at(_LATE, config, layout)
    kind = "ring_all_reduce" if config.collective == "native" else "tree_all_reduce"
    return _once(
        Transfer(kind=kind, size=_table(config, sizes)),
        Transfer(kind=kind, size=_WORD * sizes.candidates + _tail(layout)),
    )


def _table(config: GsSgdPaperConfig, sizes: ExchangeSizes) -> int:
    return torch_dtype(config.wire_dtype).itemsize * (config.rows * sizes.columns + 1)


def _sketched_sgd(config: SketchedSgdConfig, layout: FlatLayout, ranks: int) -> tuple[Step, ...]:
    sizes = ExchangeSizes.at(_LATE, config, layout)
    header, index = 2 * _WORD, _entry(layout) - _WORD
    return _once(
        Transfer(kind="gather", size=_table(config, sizes)),
        Transfer(kind="tree_broadcast", size=header + index * sizes.candidates),
        Transfer(kind="gather", size=_WORD * sizes.candidates + _tail(layout)),
        Transfer(kind="tree_broadcast", size=_entry(layout) * sizes.selected + _tail(layout)),
    )


def _top_k(config: TopKConfig, layout: FlatLayout, ranks: int) -> tuple[Step, ...]:
    selected = config.selected_at(_LATE, layout)
    if config.exchange == "all_gather":
        entries = Transfer(kind="ring_all_gather", size=_entry(layout) * selected)
        return _once(_all_reduce(_tail(layout)), entries)
    own = min(math.ceil(config.proposal_factor * selected / ranks), layout.compressed_size)
    candidates = min(own * ranks, layout.compressed_size)
    return _once(
        Transfer(kind="ring_all_gather", size=(_entry(layout) - _WORD) * own),
        _all_reduce(_WORD * candidates + _tail(layout)),
    )


def _g_top_k(config: GTopKConfig, layout: FlatLayout, ranks: int) -> tuple[Step, ...]:
    size = _entry(layout) * config.selected_at(_LATE, layout)
    return _once(
        _all_reduce(_tail(layout)),
        Transfer(kind="tree_reduce", size=size),
        Transfer(kind="tree_broadcast", size=size),
    )


def _ok_top_k(config: OkTopKConfig, layout: FlatLayout, ranks: int) -> tuple[Step, ...]:
    selected = config.selected_at(_LATE, layout)
    others = ranks - 1
    return _once(
        _all_reduce(_WORD * others + _tail(layout)),
        Transfer(kind="all_to_all", size=8 * others),
        Transfer(kind="all_to_all", size=_entry(layout) * selected * others / ranks),
        *[Transfer(kind="tree_all_reduce", size=_WORD * 256)] * 4,
        Transfer(kind="ring_all_gather", size=2 * 8),
        Transfer(kind="all_to_all", size=0),
        Transfer(kind="ring_all_gather", size=_entry(layout) * math.ceil(selected / ranks)),
    )


def _random_k(config: RandomKConfig, layout: FlatLayout, ranks: int) -> tuple[Step, ...]:
    return _once(_all_reduce(_WORD * config.selected_at(_LATE, layout) + _tail(layout)))


def _power_sgd(config: PowerSgdConfig, layout: FlatLayout, ranks: int) -> tuple[Step, ...]:
    left = right = 0
    for segment in layout.compressed:
        rows, columns = segment.matrix_shape
        rank = min(config.rank, rows, columns)
        left, right = left + rank * rows, right + rank * columns
    item, lanes = torch_dtype(config.wire_dtype).itemsize, 1 + LANES
    return _once(
        _all_reduce(item * (left + layout.dense_size + lanes)), _all_reduce(item * (right + lanes))
    )


_STEPS: Mapping[type[ReducerConfig], Callable[[Any, FlatLayout, int], tuple[Step, ...]]] = (
    MappingProxyType(
        {
            DenseConfig: _dense,
            GsSgdConfig: _gs_sgd,
            GsSgdPaperConfig: _gs_sgd_paper,
            SketchedSgdConfig: _sketched_sgd,
            TopKConfig: _top_k,
            GTopKConfig: _g_top_k,
            OkTopKConfig: _ok_top_k,
            RandomKConfig: _random_k,
            PowerSgdConfig: _power_sgd,
        }
    )
)
