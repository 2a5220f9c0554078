"""Fit a method to a budget of bytes over the whole run, by asking the reducer itself what it sends."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.convergence.emulation import EmulatedExchange, dense_bytes
from benchmarks.convergence.methods import Fittable, fill_amount, filled, sized
from gsdist.errors import ConfigError
from gsdist.reducers import FlatLayout, GsSgdConfig
from gsdist.reducers.agreement_lanes import LANES
from gsdist.reducers.gs_sgd_config import ByteBudget, steps_to_next_refresh

__all__ = ["Fit", "Fitter"]

_CLOSE = 1.2
"""How far, as a factor, a method may miss a budget and still be run at the least it can send."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """Tell how near a method comes to a budget, and how."""

    config: Fittable
    compression: float
    """Dense bytes over predicted bytes of the whole run."""
    meets: bool
    """Whether the budget is kept; if not, `config` sends as little as the method can."""
    runs: bool
    """Whether a run can stand for this budget."""


class Fitter:
    """Find the settings that use a budget up, for one model, number of workers and number of steps.

    What a step sends is taken from exchanges of random gradients: two dense, two compressed. The first of a
    kind may travel in float32 to set a scale, the second stands for all others. Random
    proposals of different workers hardly ever coincide, real ones do: that method ends below its budget.
    """

    def __init__(self, parameters: Mapping[str, Tensor], *, workers: int, steps: int) -> None:
        self._parameters = parameters
        self._workers = workers
        self._steps = steps
        self._dense = steps * dense_bytes(parameters, workers)
        self._probed: dict[Fittable, tuple[float, ...]] = {}

    def fit(self, base: Fittable, budget: float, *, warmup_share: float) -> Fit:
        """Fit one method to dense bytes / budget, `warmup_share` of it for dense steps at the start."""
        layout = FlatLayout.from_parameters(self._parameters.items(), base.is_dense)
        planned = int(warmup_share * self._steps / budget)
        if isinstance(base, GsSgdConfig):
            start = replace(base, warmup_steps=max(planned, base.warmup_steps))
            return _fit_gs_sgd(start, layout, budget, self._steps)
        numel = layout.compressed_numel

        for warmup in range(planned, -1, -1):
            start = replace(base, warmup_steps=warmup)
            amount = self._most(partial(sized, start, numel), budget, 1, numel)
            if amount is not None:
                config = self._fill(sized(start, numel, amount), numel, budget)
                return Fit(
                    config=config, compression=self.compression(config), meets=True, runs=True
                )
        least = sized(replace(base, warmup_steps=0), numel, 1)
        compression = self.compression(least)
        return Fit(
            config=least,
            compression=compression,
            meets=False,
            runs=compression * _CLOSE >= budget,
        )

    def compression(self, config: Fittable) -> float:
        """Predict dense bytes over bytes of the whole run, warm-up included."""
        probed = self._probe(replace(config, warmup_steps=2))
        total = 0.0
        for count, first, later in (
            (config.warmup_steps, *probed[:2]),
            (self._steps - config.warmup_steps, *probed[2:]),
        ):
            if count > 0:
                total += first + (count - 1) * later
        return self._dense / total

    def _fill(self, config: Fittable, numel: int, budget: float) -> Fittable:
        amount = fill_amount(config, numel)
        if amount is None:
            return config
        settings = partial(filled, config, numel)
        most = self._most(settings, budget, amount, 2 * amount + self._steps)
        assert most is not None, "the settings to be filled up fit"
        return settings(most)

    def _most(
        self, settings: Callable[[int], Fittable], budget: float, low: int, high: int
    ) -> int | None:
        """Return the largest amount whose settings keep the budget."""
        return _largest(lambda n: 1.0 / self.compression(settings(n)), 1.0 / budget, low, high)

    def _probe(self, config: Fittable) -> tuple[float, ...]:
        if config not in self._probed:
            exchange = EmulatedExchange(config, self._parameters, self._workers, momentum=0.9)
            numel = exchange.layout.numel
            generator = torch.Generator().manual_seed(0)
            gradients = torch.empty(self._workers, numel)
            seen = []
            for _ in range(4):
                exchange.average(gradients.normal_(generator=generator))
                seen.append(exchange.last_bytes())
            self._probed[config] = tuple(seen)
        return self._probed[config]


def _fit_gs_sgd(base: GsSgdConfig, layout: FlatLayout, budget: float, steps: int) -> Fit:
    """Find the compression setting whose whole run keeps the budget: dense steps, then many refreshes."""
    low, high = 1.0, 4.0 * budget  # too many bytes; too few, or none left for coefficients
    for _ in range(40):
        middle = (low + high) / 2
        reached = _gs_sgd_compression(replace(base, compression=middle), layout, steps)
        if reached is not None and reached < budget:
            low = middle
        else:
            high = middle
    config = replace(base, compression=high)
    reached = _gs_sgd_compression(config, layout, steps)
    if reached is None:
        config = replace(base, compression=low)
        reached = _gs_sgd_compression(config, layout, steps) or 1.0
    return Fit(
        config=config,
        compression=reached,
        meets=reached >= budget,
        runs=reached * _CLOSE >= budget,
    )


def _gs_sgd_compression(config: GsSgdConfig, layout: FlatLayout, steps: int) -> float | None:
    """Count a run's words by its schedule, None if nothing is left to choose coefficients by.

    The first exchange of each kind sets a scale and travels in float32.
    """
    try:
        divided = ByteBudget.of(config, layout)
    except ConfigError:
        return None
    item = 2 if config.wire_dtype == "float16" else 4
    ordinary = divided.coefficients + divided.overhead_words
    words, step, compressed_steps = 0, 0, steps - config.warmup_steps
    while step < compressed_steps:
        following = min(step + steps_to_next_refresh(step, divided.interval), compressed_steps)
        words += divided.refresh_words + (following - step - 1) * ordinary
        step = following
    whole = layout.compressed_size + layout.dense_size + 1 + LANES
    words += config.warmup_steps * whole
    scaling = divided.refresh_words + ordinary + min(config.warmup_steps, 1) * whole
    return 4 * layout.numel * steps / (item * words + (4 - item) * scaling)


def _largest(cost: Callable[[int], float], limit: float, low: int, high: int) -> int | None:
    """Return the largest number of low..high that costs at most `limit`; None: not even `low` does.

    The cost rises, nearly along a straight line, and is dear to ask for.
    """
    if cost(low) > limit:
        return None
    fits, reach = low, 1
    while fits < high:
        fails = min(low + reach, high)
        if cost(fails) > limit:
            return _between(cost, limit, fits, fails)
        fits, reach = fails, 8 * reach
    return high


def _between(cost: Callable[[int], float], limit: float, fits: int, fails: int) -> int:
    """Return the largest number that fits, between one that does and one that does not."""
    for turn in itertools.count():
        if fails - fits <= 1:
            break
        share = (limit - cost(fits)) / (cost(fails) - cost(fits))
        if turn % 3 == 2:  # steps in the cost can hold interpolation up
            share = 0.5
        guess = min(max(fits + int(share * (fails - fits)), fits + 1), fails - 1)
        if cost(guess) > limit:
            fails = guess
        else:
            fits = guess
    return fits
