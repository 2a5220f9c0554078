"""Pruning on two real processes: the same masks everywhere, still coordinates, and resumed runs."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from gsdist.errors import ConfigMismatch
from gsdist.reducers import DenseConfig, GsSgdConfig, ReducerConfig
from gsdist.training import RunConfig, TrainConfig, Trainer, detect_launch, process_group
from gsdist.training.pruning import PruningCallback
from gsdist.workloads import ClassificationConfig, ClassificationWorkload, Workload
from gsdist.workloads.pruning import PRESETS, Pruner, PruningConfig
from tests.distributed.harness import run_ranks
from tests.workloads.pruning.networks import IMAGES, Chain

WORLD_SIZE = 2
TRAIN = TrainConfig(
    epochs=3, batch_size=128, learning_rate=0.05, weight_decay=5e-3, nesterov=True, progress=False
)
COMPRESSED = GsSgdConfig(compression=3, min_numel=128, momentum="local")
CUT = replace(PRESETS["cpmc"], target="macs", rate=0.4, compact_at=0.3)
STOPS_AFTER = 7
"""Steps; an epoch of the digits has 5 of them."""


class Plain(ClassificationWorkload):
    """Digits by a network without normalisation, so that the local batch does not matter."""

    def build_model(self) -> nn.Module:
        layers: list[nn.Module] = [nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.ReLU()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 16, 10))


class Stopping(ClassificationWorkload):
    """Digits, until a step in the middle of an epoch."""

    def after_step(self, model: nn.Module, step: int) -> None:
        if step == STOPS_AFTER:
            raise KeyboardInterrupt


def digits(model: str = "resnet8-narrow") -> ClassificationConfig:
    return ClassificationConfig(model=model, data="digits", augment=False)


def make_trainer(
    folder: Path,
    kind: Callable[[ClassificationConfig], Workload],
    pruning: PruningConfig,
    reducer: ReducerConfig,
    **train: Any,
) -> Trainer:
    run = RunConfig(
        train=replace(TRAIN, run_dir=folder, **train),
        reducer=reducer,
        workload_name="classification",
        workload=digits(),
        pruning=pruning,
    )
    return Trainer(run, kind(digits()))


def watch_masks(trainer: Trainer) -> list[int]:
    """Note the hash of the masks after every epoch."""
    seen: list[int] = []
    callback = trainer._callback
    assert isinstance(callback, PruningCallback)
    before = callback.epoch_ended

    def epoch_ended(epoch: int) -> Any:
        change = before(epoch)
        seen.append(callback.pruner.fingerprint())
        return change

    callback.epoch_ended = epoch_ended  # type: ignore[method-assign]
    return seen


def bits(trainer: Trainer) -> str:
    values = trainer._learner.model.state_dict().values()
    joined = torch.cat([value.reshape(-1).contiguous().view(torch.uint8) for value in values])
    return hashlib.sha256(joined.numpy().tobytes()).hexdigest()


def _decide_apart(rank: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = Chain()
    with torch.no_grad():
        model.features[0].weight[:] = 1.0  # ties, which 1e-7 on one rank would decide otherwise
        if rank == 1:
            model.features[0].weight[0] += 1e-6
    pruner = Pruner(model, (IMAGES,), PRESETS["hfp"], total_events=2)
    own = pruner._decide(0)[0]
    pruner.on_epoch_end(0)
    found: dict[str, Any] = {"own": own, "masks": pruner.fingerprint()}
    if rank == 1:
        pruner._decision[-1] = 2 - pruner._decision[-1]
    try:
        pruner._require_agreement()
    except ConfigMismatch as error:
        found["refusal"] = str(error)
    return found


def _hard_coordinates(trainer: Trainer) -> dict[str, int]:
    """Count what is not zero where nothing may be trained."""
    callback = trainer._callback
    assert isinstance(callback, PruningCallback) and callback.pruner.coordinate_mask is not None
    mask = callback.pruner.coordinate_mask
    parameters = dict(trainer._learner.model.named_parameters())
    state = trainer._learner.own_state()

    def moved(tensors: dict[str, Tensor]) -> int:
        return sum(
            int(tensors[n][~kept].count_nonzero()) for n, kept in mask.items() if n in tensors
        )

    return {
        "parameters": moved({name: p.detach() for name, p in parameters.items()}),
        "residual": moved(state["residual"]),
        "momentum": moved(state["momentum"]),
        "hard": sum(int((~kept).sum()) for kept in mask.values()),
        "residual elsewhere": sum(int(r.count_nonzero()) for r in state["residual"].values()),
    }


def _on_two_ranks(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    found: dict[str, Any] = {"apart": _decide_apart(rank)}

    # Exact exchange of a network without normalisation: compared with one process, see below.
    trainer = make_trainer(Path(folder) / "plain", Plain, PRESETS["asrfp"], DenseConfig())
    found["plain"] = watch_masks(trainer)
    trainer.run()

    for name, pruning in (("cut", CUT), ("soft to hard", PRESETS["ghfp"])):
        options: dict[str, Any] = {"deterministic": True, "checkpoint_every": 3}
        whole = make_trainer(
            Path(folder) / name / "whole", ClassificationWorkload, pruning, COMPRESSED, **options
        )
        masks = watch_masks(whole)
        summary = whole.run()
        cut_off = Path(folder) / name / "cut off"
        try:
            make_trainer(cut_off, Stopping, pruning, COMPRESSED, **options).run()
        except KeyboardInterrupt:
            dist.barrier()
        options["resume"] = True
        resumed = make_trainer(cut_off, ClassificationWorkload, pruning, COMPRESSED, **options)
        resumed.run()
        assert resumed._learner.num_parameters == whole._learner.num_parameters
        found[name] = {
            "whole": bits(whole),
            "resumed": bits(resumed),
            "masks": masks,
            "metrics": dict(summary.metrics),
            "d": summary.num_parameters,
        }
        if name == "soft to hard":
            found["hard"] = _hard_coordinates(whole)
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(_on_two_ranks, WORLD_SIZE, str(tmp_path_factory.mktemp("runs")), timeout=360)


def test_rank_0_decides_for_all(ranks: list[dict[str, Any]]) -> None:
    first, second = (found["apart"] for found in ranks)
    assert not torch.equal(first["own"], second["own"]), (
        "the disturbance should have told them apart"
    )
    assert first["masks"] == second["masks"]


def test_masks_that_differ_are_refused_on_every_rank(ranks: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(ranks):
        assert f"rank {rank}: the masks of the ranks differ" in found["apart"]["refusal"]


def test_masks_are_equal_on_all_ranks_after_every_epoch(ranks: list[dict[str, Any]]) -> None:
    first, second = ([found["plain"], found["soft to hard"]["masks"]] for found in ranks)
    assert first == second and [len(masks) for masks in first] == [3, 3]


def test_one_process_with_the_whole_batch_gets_the_same_masks(
    ranks: list[dict[str, Any]], tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    with process_group(detect_launch({}), timedelta(seconds=30)):
        trainer = make_trainer(tmp_path, Plain, PRESETS["asrfp"], DenseConfig(), batch_size=256)
        masks = watch_masks(trainer)
        trainer.run()
    assert masks == ranks[0]["plain"] and len(set(masks)) > 1


def test_hard_coordinates_are_zero_with_residual_and_momentum(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        hard = found["hard"]
        assert hard["parameters"] == hard["residual"] == hard["momentum"] == 0
        assert hard["hard"] > 0 and hard["residual elsewhere"] > 0


def test_what_is_left_to_train_is_reported(ranks: list[dict[str, Any]]) -> None:
    metrics = ranks[0]["soft to hard"]["metrics"]
    assert metrics["hard_share"] == 1 and metrics["softness"] == 0
    assert metrics["effective_dimension"] == round(
        metrics["params_ratio"] * ranks[0]["soft to hard"]["d"]
    )
    assert 0.4 < metrics["params_ratio"] < 0.6


@pytest.mark.parametrize("run", ["soft to hard", "cut"])
def test_a_run_resumed_in_the_middle_of_its_schedule_has_the_same_bits(
    run: str, ranks: list[dict[str, Any]]
) -> None:
    for found in ranks:
        assert found[run]["resumed"] == found[run]["whole"] == ranks[0][run]["whole"]


def test_training_goes_on_with_the_smaller_network(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["cut"]["d"] < ranks[0]["soft to hard"]["d"]
