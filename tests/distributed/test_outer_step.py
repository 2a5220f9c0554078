"""Outer steps on two gloo processes: against dense training, against formulas in one process, and resumed."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gsdist.errors import ConfigError
from gsdist.integrations import OuterStep, OuterStepConfig
from gsdist.reducers import DenseConfig, ReducerConfig, TopKConfig
from gsdist.training import RunConfig, TrainConfig, Trainer
from gsdist.workloads import ClassificationConfig, ClassificationWorkload
from tests.distributed.harness import run_ranks
from tests.distributed.test_checkpoint import assert_same

WORLD_SIZE = 2
STEPS = 7
RATE = 0.05


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 8, bias=False), nn.Tanh(), nn.Linear(8, 4, bias=False))


def batch_of(rank: int, step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(16, 12, generator=generator), torch.randn(16, 4, generator=generator)


def inner_optimizer(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(
        model.parameters(), lr=RATE, momentum=0.9, nesterov=True, weight_decay=0.01
    )


def step_once(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, step: int) -> None:
    inputs, targets = batch_of(rank, step)
    optimizer.zero_grad()
    (model(inputs) - targets).square().mean().backward()
    optimizer.step()


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def run_outer(
    rank: int, config: OuterStepConfig, reducer: ReducerConfig
) -> tuple[list[list[Tensor]], list[list[Tensor]], OuterStep]:
    """Return the model's own and the shared parameters after every step."""
    model = make_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += rank  # everyone takes rank 0's
    optimizer = inner_optimizer(model)
    outer = OuterStep(model, reducer, config)
    own, shared = [], []
    for number in range(1, STEPS + 1):
        step_once(model, optimizer, rank, number)
        outer.step(number)
        own.append(weights(model))
        with outer.shared_parameters():
            shared.append(weights(model))
        assert_same(weights(model), own[-1])
    return own, shared, outer


def run_dense(rank: int) -> list[list[Tensor]]:
    ddp = DistributedDataParallel(make_model())
    optimizer, history = inner_optimizer(ddp), []
    for number in range(1, STEPS + 1):
        step_once(ddp, optimizer, rank, number)
        history.append(weights(ddp))
    return history


def train(rank: int, folder: str) -> list[Any]:
    """Train with AdamW inside, to the end and again from the middle of an interval; return both outcomes."""

    def trainer(resume: bool) -> Trainer:
        config = TrainConfig(
            steps=10,
            batch_size=16,
            optimizer="adamw",
            learning_rate=0.01,
            outer_interval=4,
            outer_learning_rate=0.7,
            outer_momentum=0.9,
            outer_fragments=2,
            checkpoint_every=5,
            keep=9,
            resume=resume,
            run_dir=Path(folder),
            progress=False,
        )
        workload = ClassificationConfig(data="digits", model="mlp", train_subset=400)
        reducer = TopKConfig(density=0.05, warmup_steps=0, min_numel=1, momentum="local")
        run = RunConfig(
            train=config, reducer=reducer, workload_name="classification", workload=workload
        )
        return Trainer(run, ClassificationWorkload(workload))

    outcomes = []
    for resume in (False, True):
        one = trainer(resume)
        summary = one.run()
        own = one._learner.own_state()
        for fragment in own["exchange"]["fragments"]:
            fragment["reducer"]["statistics"].pop("seconds")
        outcomes.append((own, summary.metrics, summary.dense_bytes_run))
        dist.barrier()
        if rank == 0:
            shutil.rmtree(Path(folder) / "checkpoints" / "step-000000010")
        dist.barrier()
    return outcomes


def experiments(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    average = OuterStepConfig(interval=1, learning_rate=1.0, momentum=0.0)
    nesterov = OuterStepConfig(interval=3, learning_rate=0.7, momentum=0.9, fragments=2)
    sparse = TopKConfig(density=0.2, warmup_steps=0, min_numel=1)
    return {
        "dense": run_dense(rank),
        "average": run_outer(rank, average, DenseConfig())[0],
        "nesterov": run_outer(rank, nesterov, DenseConfig())[:2],
        "sparse": run_outer(rank, OuterStepConfig(interval=3), sparse)[:2],
        "bytes": [
            run_outer(rank, OuterStepConfig(interval=3), r)[2].stats()
            for r in (DenseConfig(), sparse)
        ],
        "trained": train(rank, folder),
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("run")
    return run_ranks(experiments, WORLD_SIZE, str(folder), timeout=100)


def test_a_plain_average_after_every_step_is_dense_training(results: list[dict[str, Any]]) -> None:
    """Momentum, Nesterov's too, and weight decay are linear: both differ by the rounding of parameters.

    Each step rounds differences to parameters of about 0.3, which is 3e-8 a time.
    """
    for result in results:
        moved = (result["dense"][-1][0] - weights(make_model())[0]).abs().max()
        assert moved > 1e-2
        for step in range(STEPS):
            for got, expected in zip(result["average"][step], result["dense"][step], strict=True):
                torch.testing.assert_close(got, expected, rtol=0, atol=5e-7)


def simulate(config: OuterStepConfig) -> tuple[list[list[list[Tensor]]], list[list[Tensor]]]:
    """Do the same in one process by the formulas: own parameters by rank and step, anchors by step."""
    models = [make_model() for _ in range(WORLD_SIZE)]
    optimizers = [inner_optimizer(model) for model in models]
    anchors = weights(models[0])
    velocity = [torch.zeros_like(anchor) for anchor in anchors]
    own: list[list[list[Tensor]]] = [[] for _ in models]
    shared = []
    for number in range(1, STEPS + 1):
        for rank, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            step_once(model, optimizer, rank, number)
        for part, anchor in enumerate(anchors):  # with two fragments each layer is one
            offset = part * config.interval // 2 if config.fragments == 2 else 0
            if (number + offset) % config.interval:
                continue
            theirs = [list(model.parameters())[part] for model in models]
            delta = anchor - torch.stack([p.detach() for p in theirs]).mean(0)
            velocity[part] = config.momentum * velocity[part] + delta
            anchor -= config.learning_rate * (delta + config.momentum * velocity[part])
            with torch.no_grad():
                for parameter in theirs:
                    parameter.copy_(anchor)
        for rank, model in enumerate(models):
            own[rank].append(weights(model))
        shared.append([anchor.clone() for anchor in anchors])
    return own, shared


def test_nesterov_on_pseudo_gradients_with_fragments_in_turn(
    results: list[dict[str, Any]],
) -> None:
    config = OuterStepConfig(interval=3, learning_rate=0.7, momentum=0.9, fragments=2)
    own, shared = simulate(config)
    for rank, result in enumerate(results):
        for got, expected in zip(result["nesterov"], (own[rank], shared), strict=True):
            for step in range(STEPS):
                for one, other in zip(got[step], expected[step], strict=True):
                    torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-6)


def test_with_top_k_inside_workers_meet_at_every_outer_step(results: list[dict[str, Any]]) -> None:
    first, second = (result["sparse"] for result in results)
    for step in range(STEPS):
        met = all(torch.equal(a, b) for a, b in zip(first[0][step], second[0][step], strict=True))
        assert met == ((step + 1) % 3 == 0)
        assert_same(first[1][step], second[1][step])


def test_bytes_are_those_of_outer_steps_and_dense_ones_those_of_every_step(
    results: list[dict[str, Any]],
) -> None:
    numel = 12 * 8 + 8 * 4
    for result in results:
        dense, sparse = result["bytes"]
        assert dense.payload_bytes == (STEPS // 3) * 4 * numel
        assert dense.dense_bytes == sparse.dense_bytes == STEPS * 4 * numel
        lanes = 4 * 33
        assert sparse.payload_bytes == (STEPS // 3) * (8 * round(0.2 * numel) + lanes)


def test_a_run_resumed_within_an_interval_ends_with_the_same_bits(
    results: list[dict[str, Any]],
) -> None:
    for result in results:
        assert_same(result["trained"][1], result["trained"][0])
    # the last step of a run brings all fragments together
    models = [result["trained"][0][0]["local"]["model"] for result in results]
    assert_same(models[0], models[1])
    inner = [result["trained"][0][0]["local"]["optimizer"]["state"][0] for result in results]
    assert not torch.equal(inner[0]["exp_avg"], inner[1]["exp_avg"])


@pytest.mark.parametrize(
    "settings", [{"interval": 0}, {"learning_rate": 0.0}, {"momentum": 1.0}, {"fragments": 17}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        OuterStepConfig(**settings)
