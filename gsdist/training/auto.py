"""Choose the exchange method at the start of a run: measure links and machines, then ask the planner."""

import statistics
import time
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import default_collate

from gsdist.collectives import gather_json, probe_link, share_faults, wait_for_device
from gsdist.errors import ConfigError
from gsdist.planner import CANDIDATES, Plan, Situation, make_plan, measure_in_group
from gsdist.reducers import DenseConfig
from gsdist.training import randomness
from gsdist.training.config import TrainConfig
from gsdist.training.device import to_device
from gsdist.training.run_config import RunConfig
from gsdist.training.suited import suited_to
from gsdist.workloads import Workload

__all__ = ["choose_reducer"]

_CPU = torch.device("cpu")
_ROUNDS = 3


def choose_reducer(
    run: RunConfig, workload: Workload, device: torch.device = _CPU
) -> tuple[RunConfig, str]:
    """Replace the reducer "auto" by the one that is predicted to reach dense quality first.

    All ranks must call it and choose alike. Returns the run and a line that says what was chosen and why.
    Seeds torch's global generator, as the run will again.

    Raises:
        ConfigError: the run has nodes or outer steps, which the planner knows nothing of.
        GsdistError: what is wrong with the data, on every rank.

    Collectives: those of `probe_link` and `measure_in_group`; some all-gathers.
    """
    config = run.train
    if dist.get_world_size() == 1:
        return replace(run, reducer=DenseConfig()), "auto: dense, as there is only one worker"
    for name in ("node_size", "outer_interval"):
        if getattr(config, name) is not None:
            raise ConfigError(
                f'reducer is "auto" with {name}={getattr(config, name)}; auto compares exchanges of every '
                "step between all workers, name the reducer to be used"
            )
    plan = _plan(config, workload, device)
    return replace(run, reducer=suited_to(config, plan.chosen.candidate.config)), _explained(plan)


def _plan(config: TrainConfig, workload: Workload, device: torch.device) -> Plan:
    with share_faults():
        randomness.seed_everything(config.seed)
        model = workload.build_model().to(device)
        shapes = {n: tuple(p.shape) for n, p in model.named_parameters() if p.requires_grad}
        compute = config.accumulation * _compute_seconds(config, workload, model, device)
    link, group = probe_link(device=device), dist.group.WORLD
    assert group is not None
    situation = Situation(
        ranks=dist.get_world_size(),
        link=link,
        compute_seconds=max(gather_json(compute)),
        skew=1.0,
    )
    measured = measure_in_group(CANDIDATES.values(), shapes, link, group, device)
    return make_plan(shapes, measured, situation)


def _compute_seconds(
    config: TrainConfig, workload: Workload, model: Any, device: torch.device
) -> float:
    """Return the median time of a forward and a backward pass, the first not counted."""
    dataset: Any = workload.training_dataset()
    examples = [dataset[index % len(dataset)] for index in range(config.batch_size)]
    generator = randomness.generator_for(config.seed)
    collate = workload.collate_function() or default_collate
    collated = to_device(collate(examples), device)
    batch = workload.prepare_batch(collated, training=True, generator=generator)
    seconds = []
    for _ in range(1 + _ROUNDS):
        start = time.perf_counter()
        workload.loss(model, batch).total.backward()  # type: ignore[no-untyped-call]
        wait_for_device(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def _explained(plan: Plan) -> str:
    chosen, baseline, link = plan.chosen, plan.baseline, plan.situation.link
    assert chosen.quality_seconds is not None and chosen.step_factor is not None
    ratio = chosen.quality_seconds / baseline.step_seconds
    return (
        f"auto: {chosen.name}. Measured {8e-6 * link.bandwidth:,.0f} Mb/s, {1e3 * link.latency:.3g} ms per "
        f"message, {plan.situation.compute_seconds:.3g} s of computing per step; predicted "
        f"{chosen.step_seconds:.3g} s with {chosen.step_factor.factor:.2f} times the steps of dense "
        f"training, against {baseline.step_seconds:.3g} s of {baseline.name}: {ratio:.2f} of its time"
    )
