"""Graph workloads on two ranks: the course of one process, equal ranks, and learning when compressed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gsdist.data.hetero_sbm import hetero_sbm
from gsdist.reducers import DenseConfig, GsSgdConfig, ReducerConfig
from gsdist.training import RunConfig, TrainConfig, Trainer
from gsdist.training.sampling import TrainingBatches
from gsdist.workloads.graph import GraphConfig, LinkWorkload, NodeConfig, NodeWorkload
from tests.distributed.harness import run_ranks
from tests.workloads.graph.test_link_prediction import link_task

WORLD_SIZE = 2
BATCH = 7
STEPS = 3
LEARNING_RATE = 0.05
PLAIN: dict[str, Any] = {
    "data": "hetero-sbm",
    "input_dropout": 0.0,
    "hop_dropout": 0.0,
    "width": 16,
    "orthogonality": 0.01,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "apart": PLAIN,
    "exchanged": {**PLAIN, "exchange_regulariser": True},
    "layered": {**PLAIN, "blocks": "layered"},
}


class _Quick(NodeWorkload):
    """Goes without pictures and clusters, which are not looked at here."""

    def final_measures(self, model: torch.nn.Module) -> None:
        return None


def one_process(settings: dict[str, Any]) -> dict[str, Tensor]:
    """Train on the batches of all ranks with nothing but torch."""
    work = NodeWorkload(NodeConfig(**settings))
    torch.manual_seed(0)
    model = work.build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)
    count = len(work.training_dataset())
    ranks = [
        TrainingBatches(count, batch_size=BATCH, rank=rank, world_size=WORLD_SIZE, seed=0)
        for rank in range(WORLD_SIZE)
    ]
    for batches, _ in zip(zip(*ranks, strict=True), range(STEPS), strict=False):
        both = torch.tensor([index for own in batches for index in own])
        assert len(set(both.tolist())) == WORLD_SIZE * BATCH
        batch = work.prepare_batch(both, training=True)
        (work.loss(model, batch).total + work.replicated_loss(model)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


def _run(
    work: Any, config: GraphConfig, folder: str, reducer: ReducerConfig, training: dict[str, Any]
) -> torch.nn.Module:
    train = TrainConfig(
        weight_decay=0.0,
        schedule="constant",
        evaluate_every=10**6,
        progress=False,
        run_dir=Path(folder) / "run",
        **training,
    )
    trainer = Trainer(
        RunConfig(train=train, reducer=reducer, workload_name=work.name, workload=config), work
    )
    trainer.run()
    return trainer._learner.model


def _all_courses(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    """Run everything in one set of processes, as starting them takes longest."""
    training: dict[str, Any] = {"steps": STEPS, "batch_size": BATCH, "learning_rate": LEARNING_RATE}
    states = {}
    for name, settings in SETTINGS.items():
        config = NodeConfig(**settings)
        model = _run(_Quick(config), config, f"{folder}/{name}", DenseConfig(), training)
        states[name] = model.state_dict()
    compressed, accuracy = _compressed(folder)
    return {**states, "compressed": compressed, "accuracy": accuracy, "links": _links(folder)}


def _compressed(folder: str) -> tuple[dict[str, Tensor], float]:
    task = hetero_sbm(authors=400, papers=900)
    config = NodeConfig(data="hetero-sbm", weight_penalty=1e-3)
    work = _Quick(config, task)
    training = {
        "steps": 40,
        "batch_size": 50,
        "optimizer": "adamw",
        "betas": (0.9, 0.999),
        "learning_rate": 0.01,
    }
    model = _run(work, config, folder, GsSgdConfig(compression=5), training)
    accuracy, _ = work.evaluate(model, [None])["micro_f1"]
    return model.state_dict(), accuracy


def _links(folder: str) -> dict[str, Tensor]:
    config = GraphConfig(width=16)
    work = LinkWorkload(config, link_task(hetero_sbm().graph))
    training = {"steps": 5, "batch_size": 100, "optimizer": "adamw", "learning_rate": 0.01}
    return _run(work, config, folder, DenseConfig(), training).state_dict()


@pytest.fixture(scope="module")
def courses(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return what each rank ended with."""
    return run_ranks(_all_courses, WORLD_SIZE, str(tmp_path_factory.mktemp("graph")), timeout=200)


pytestmark = pytest.mark.timeout(240)  # of the fixture; seconds where processors are free


@pytest.mark.parametrize("name", SETTINGS)
def test_10_two_ranks_take_the_course_of_one_process(
    name: str, courses: list[dict[str, Any]]
) -> None:
    for key, value in one_process(SETTINGS[name]).items():
        torch.testing.assert_close(courses[0][name][key], value, rtol=0, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", [*SETTINGS, "compressed", "links"])
def test_ranks_end_with_equal_weights(name: str, courses: list[dict[str, Any]]) -> None:
    first, second = courses
    assert first[name].keys() == second[name].keys()
    assert all(torch.equal(value, second[name][key]) for key, value in first[name].items())


def test_compressed_gradients_learn(courses: list[dict[str, Any]]) -> None:
    assert courses[0]["accuracy"] > 0.8
