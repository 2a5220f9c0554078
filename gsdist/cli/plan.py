"""Predict what each exchange method would cost: `gsdist plan`."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Annotated

import torch.distributed as dist
import tyro

from gsdist.collectives import probe_link
from gsdist.collectives.cost_model import Link
from gsdist.errors import ConfigError
from gsdist.planner import (
    CANDIDATES,
    Measured,
    Plan,
    Situation,
    Variation,
    make_plan,
    measure_alone,
    measure_in_group,
    simulate,
    transformer_shapes,
)
from gsdist.training import detect_launch, process_group

__all__ = ["main", "parse_bandwidth", "parse_latency", "plan_text"]

_BANDWIDTH = {"kbit": 125.0, "mbit": 125e3, "gbit": 125e6}
_LATENCY = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_TIMEOUT = timedelta(seconds=300)
_DESCRIPTION = """\
Predict step time, bytes and time to dense quality of every exchange method.

Under torchrun, links and the machines' speed of compression are measured.

Otherwise say what is to be assumed: the answer is a projection.

examples:
  torchrun --nproc-per-node 2 -m gsdist plan --params 25e6 --compute 0.3
  gsdist plan --world-size 64 --bandwidth 1Gbit --latency 1ms --params 25e6
  gsdist plan --world-size 1024 --bandwidth 1Gbit --latency 20ms --params 7e9 \\
      --compute 2 --compression-speed 50 --spread 0.2 --workers-per-link 8
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanOptions:
    """Say what is trained, and where."""

    params: float
    """Parameters of the model, taken to be a transformer's: methods that look for directions depend on
    the shapes of matrices."""
    compute: float = 0.0
    """Seconds of one training step without any exchange; at 0 the exchange alone is compared."""
    world_size: int | None = None
    """Number of workers to assume."""
    bandwidth: str | None = None
    """Bandwidth to assume of every worker's link, such as 100Mbit or 2.5Gbit."""
    latency: str | None = None
    """Latency to assume of a message, such as 50us or 20ms."""
    compression_speed: float = 1.0
    """How many times faster than this machine the workers' machines compress."""
    spread: float = 0.0
    """Also simulate steps of workers whose computing times differ so much: 0.2 is about 20 %."""
    workers_per_link: int = 1
    """Also simulate steps when so many consecutive workers share one link to all others."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        """Check the fields."""
        self.variation()
        if self.compute < 0:
            raise ConfigError(f"compute is {self.compute}; it must be at least 0")
        if self.compression_speed <= 0:
            raise ConfigError(f"compression_speed is {self.compression_speed}; it must be positive")
        if self.world_size is not None and self.world_size < 2:
            raise ConfigError(f"world_size is {self.world_size}; it must be at least 2")
        given = [self.world_size, self.bandwidth, self.latency]
        if any(one is None for one in given) and any(one is not None for one in given):
            raise ConfigError(
                "a projection needs --world-size, --bandwidth and --latency together; give all three, or "
                "none of them under torchrun to measure"
            )

    def variation(self) -> Variation | None:
        """Return what makes workers and links unequal; None: nothing is simulated."""
        variation = Variation(spread=self.spread, workers_per_link=self.workers_per_link)
        return None if variation == Variation() else variation


def main(arguments: Sequence[str]) -> int:
    """Measure or assume, predict, and print."""
    options = tyro.cli(
        Annotated[PlanOptions, tyro.conf.arg(name="")],
        args=list(arguments),
        prog="gsdist plan",
        description=_DESCRIPTION,
    )
    shapes = transformer_shapes(options.params)
    plan = _measure(options, shapes) if options.world_size is None else _project(options, shapes)
    if os.environ.get("RANK", "0") == "0":
        kind = "measured" if options.world_size is None else "projection"
        variation = options.variation()
        simulated = simulate(plan, shapes, variation) if variation else {}
        if options.json:
            content = {"kind": kind, **plan.to_mapping(), "simulated_step_seconds": simulated}
            print(json.dumps(content, indent=1))
        else:
            print("\n".join([plan_text(plan, kind), *_simulation(plan, simulated, options)]))
    return 0


def _project(options: PlanOptions, shapes: Mapping[str, tuple[int, ...]]) -> Plan:
    assert options.world_size and options.bandwidth and options.latency
    link = Link(
        latency=parse_latency(options.latency), bandwidth=parse_bandwidth(options.bandwidth)
    )
    situation = Situation(ranks=options.world_size, link=link, compute_seconds=options.compute)
    measured = measure_alone(CANDIDATES.values(), shapes)
    return make_plan(shapes, _faster(measured, options.compression_speed), situation)


def _measure(options: PlanOptions, shapes: Mapping[str, tuple[int, ...]]) -> Plan:
    launch = detect_launch()
    if launch.world_size == 1:
        raise ConfigError(
            "one worker has no link to measure; start with torchrun, or give --world-size, --bandwidth and "
            "--latency"
        )
    with process_group(launch, _TIMEOUT):
        link, group = probe_link(), dist.group.WORLD
        assert group is not None
        measured = measure_in_group(CANDIDATES.values(), shapes, link, group)
        situation = Situation(
            ranks=dist.get_world_size(), link=link, compute_seconds=options.compute, skew=1.0
        )
    return make_plan(shapes, _faster(measured, options.compression_speed), situation)


def _faster(measured: Mapping[str, Measured], times: float) -> dict[str, Measured]:
    return {
        name: replace(one, local_seconds=one.local_seconds / times)
        for name, one in measured.items()
    }


def plan_text(plan: Plan, kind: str) -> str:
    """Return the table and the choice, at most 80 columns wide."""
    situation, link = plan.situation, plan.situation.link
    lines = [
        f"{kind}: {situation.ranks} workers, {8e-6 * link.bandwidth:,.0f} Mb/s, "
        f"{1e3 * link.latency:.3g} ms per message,",
        f"{plan.num_parameters:,} parameters, {situation.compute_seconds:g} s of computing per step",
        "",
        f"{'method':<16}{'s/step':>9}{'MB/step':>10}{'x fewer':>9}{'steps':>7}"
        f"{'to quality':>12}{'pays below':>14}",
    ]
    dense = plan.baseline.step_seconds
    for one in plan.predictions:
        factor, quality = "-", "-"
        if one.step_factor is not None and one.quality_seconds is not None:
            factor = f"{one.step_factor.factor:.2f}{'' if one.step_factor.measured else '~'}"
            quality = f"{one.quality_seconds / dense:.2f}"
        lines.append(
            f"{one.name:<16}{one.step_seconds:>9.3g}{one.cost.bytes / 1e6:>10.3g}"
            f"{one.compression:>9.1f}{factor:>7}{quality:>12}{_rate(plan.break_even[one.name]):>14}"
        )
    lines += [f"{name:<16}left out: {reason}"[:80] for name, reason in plan.unfit.items()]
    lines += ["", *_explanation(plan)]
    return "\n".join(lines)


def _simulation(plan: Plan, simulated: Mapping[str, float], options: PlanOptions) -> list[str]:
    if not simulated:
        return []
    lines = [
        "",
        f"simulated, spread {options.spread:g}, {options.workers_per_link} worker(s) per link; a projection",
        f"{'method':<16}{'s/step':>9}{'to quality':>12}",
    ]
    for one in plan.predictions:
        if one.name in simulated and one.step_factor is not None:
            ratio = simulated[one.name] * one.step_factor.factor / simulated[plan.baseline.name]
            lines.append(f"{one.name:<16}{simulated[one.name]:>9.3g}{ratio:>12.2f}")
    return lines


def _explanation(plan: Plan) -> list[str]:
    chosen = plan.chosen
    return [
        "s/step: predicted. MB/step: on the busiest link. steps: needed, over those of",
        "dense training, in small measured runs (~ beyond what was measured). to",
        "quality: time to dense quality over that of dense bfloat16. pays below: the",
        "bandwidth under which it beats that. -: not measured, or never.",
        f"choice: {chosen.name}",
    ]


def _rate(bytes_per_second: float | None) -> str:
    if bytes_per_second is None:
        return "-"
    if bytes_per_second == float("inf"):
        return "always"
    return f"{8e-6 * bytes_per_second:,.3g} Mb/s"


def parse_bandwidth(text: str) -> float:
    """Return the bytes per second of a rate like "100Mbit" or "2.5Gbit".

    Raises:
        ConfigError: it is no rate.
    """
    return _parse(text, _BANDWIDTH, "bandwidth", "100Mbit or 2.5Gbit")


def parse_latency(text: str) -> float:
    """Return the seconds of a time like "50us" or "20ms".

    Raises:
        ConfigError: it is no time.
    """
    return _parse(text, _LATENCY, "latency", "50us, 20ms or 0.1s")


def _parse(text: str, units: Mapping[str, float], name: str, example: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text.strip().lower())
    if found is None or found[2] not in units or float(found[1]) == 0:
        raise ConfigError(
            f"{name} is {text!r}; expected a positive number and a unit, as in {example}"
        )
    return float(found[1]) * units[found[2]]
