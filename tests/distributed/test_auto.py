"""`--reducer auto` on two gloo processes: all ranks choose alike, say why, and train with it."""

from pathlib import Path
from typing import Any

from gsdist.errors import ConfigError
from gsdist.planner import CANDIDATES
from gsdist.reducers import DenseConfig, SparseConfig
from gsdist.training import AutoConfig, RunConfig, TrainConfig, Trainer, choose_reducer
from gsdist.workloads import ClassificationConfig, ClassificationWorkload
from tests.distributed.harness import run_ranks


def choose(folder: str, **options: Any) -> tuple[RunConfig, str, ClassificationWorkload]:
    settings = ClassificationConfig(data="digits", model="resnet8", train_subset=200)
    run = RunConfig(
        train=TrainConfig(steps=2, batch_size=8, run_dir=Path(folder), progress=False, **options),
        reducer=AutoConfig(),
        workload_name="classification",
        workload=settings,
    )
    workload = ClassificationWorkload(settings)
    return *choose_reducer(run, workload), workload


def choose_and_train(rank: int, world_size: int, folder: str) -> tuple[RunConfig, str, list[str]]:
    chosen, reason, workload = choose(folder)
    Trainer(chosen, workload).run()
    refusals = []
    for options in ({"node_size": 2}, {"outer_interval": 2}):
        try:
            choose(folder, **options)
        except ConfigError as error:
            refusals.append(str(error))
    return chosen, reason, refusals


def test_all_ranks_choose_one_of_the_candidates_and_write_it_down(tmp_path: Path) -> None:
    results = run_ranks(choose_and_train, 2, str(tmp_path), timeout=100)
    (first, reason, refusals), (second, _, _) = results
    assert first == second
    if isinstance(first.reducer, SparseConfig):
        assert first.reducer.momentum == "local"  # SGD has momentum
    else:
        assert first.reducer in {one.config for one in CANDIDATES.values() if one.offered}
    assert "Mb/s" in reason and "steps of dense training" in reason
    assert f'name = "{first.reducer_name}"' in (tmp_path / "config.toml").read_text()
    # what the planner knows nothing of
    assert "node_size=2" in refusals[0] and "outer_interval=2" in refusals[1]


def choose_alone(rank: int, world_size: int, folder: str) -> tuple[RunConfig, str]:
    return choose(folder)[:2]


def test_one_worker_exchanges_nothing_so_dense_will_do(tmp_path: Path) -> None:
    ((run, reason),) = run_ranks(choose_alone, 1, str(tmp_path))
    assert run.reducer == DenseConfig() and "one worker" in reason
