"""`--reducer auto` on two gloo processes: all ranks choose alike, say why, and train with it."""

from pathlib import Path

from gsdist.errors import ConfigError
from gsdist.planner import CANDIDATES
from gsdist.reducers import DenseConfig, SparseConfig
from gsdist.training import AutoConfig, RunConfig, TrainConfig, Trainer, choose_reducer
from gsdist.workloads import ClassificationConfig, ClassificationWorkload
from tests.distributed.harness import run_ranks


def train(rank: int, world_size: int, folder: str, node_size: int | None) -> tuple[RunConfig, str]:
    settings = ClassificationConfig(data="digits", model="resnet8", train_subset=200)
    run = RunConfig(
        train=TrainConfig(
            steps=2, batch_size=8, run_dir=Path(folder), progress=False, node_size=node_size
        ),
        reducer=AutoConfig(),
        workload_name="classification",
        workload=settings,
    )
    workload = ClassificationWorkload(settings)
    try:
        chosen, reason = choose_reducer(run, workload)
    except ConfigError as error:
        return run, str(error)
    Trainer(chosen, workload).run()
    return chosen, reason


def test_all_ranks_choose_one_of_the_candidates_and_write_it_down(tmp_path: Path) -> None:
    (first, reason), (second, _) = run_ranks(train, 2, str(tmp_path), None, timeout=100)
    assert first == second
    offered = {one.config for one in CANDIDATES.values() if one.offered}
    plain = first.reducer
    if isinstance(plain, SparseConfig):
        assert plain.momentum == "local"  # SGD has momentum
    else:
        assert plain in offered
    assert "Mb/s" in reason and "steps of dense training" in reason
    assert f'name = "{first.reducer_name}"' in (tmp_path / "config.toml").read_text()


def test_one_worker_exchanges_nothing_so_dense_will_do(tmp_path: Path) -> None:
    ((run, reason),) = run_ranks(train, 1, str(tmp_path), None)
    assert run.reducer == DenseConfig() and "one worker" in reason


def test_nodes_have_two_kinds_of_links_and_are_refused(tmp_path: Path) -> None:
    for _, message in run_ranks(train, 2, str(tmp_path), 2):
        assert "node_size=2" in message
