"""Gradients that are not finite, weights that flip, ranks that differ: one verdict, a culprit named."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

import gsdist
from gsdist.errors import ConfigMismatch, NonFiniteGradient, UnsupportedSetup
from gsdist.reducers import GsSgdPaperConfig
from gsdist.training import versions
from gsdist.training.monitor import RankMonitor, parameter_hash
from gsdist.training.versions import warn_of_differences
from tests.fault.injection import Fault
from tests.fault.job import Job, run_forked, training

pytestmark = pytest.mark.timeout(400)
CONFIG: dict[str, Any] = {"density": 0.1, "warmup_steps": 0, "min_numel": 16}


def make_model() -> DistributedDataParallel:
    torch.manual_seed(0)
    return DistributedDataParallel(nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 3)))


def backward(model: DistributedDataParallel, rank: int, *, spoilt: bool = False) -> None:
    inputs = torch.randn(4, 12, generator=torch.Generator().manual_seed(rank))
    if spoilt:
        inputs[0, 0] = float("nan")
    model.zero_grad()
    model(inputs).square().mean().backward()


def outcomes(rank: int, world_size: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    model = make_model()
    state = gsdist.attach(model, GsSgdPaperConfig(**CONFIG))
    backward(model, rank)
    before = copy.deepcopy(state.state_dict()["residual"])
    try:
        backward(model, rank, spoilt=rank == 1)
    except NonFiniteGradient as error:
        found["raise"] = str(error)
    after = state.state_dict()["residual"]
    found["kept"] = all(torch.equal(before[name], after[name]) for name in before)

    model = make_model()
    gsdist.attach(model, GsSgdPaperConfig(**CONFIG, non_finite="zero"))
    backward(model, rank, spoilt=rank == 1)
    found["zero"] = [parameter.grad for parameter in model.parameters()]

    model = make_model()
    gsdist.attach(model, GsSgdPaperConfig(**CONFIG))
    try:
        with Join([model]):
            backward(model, rank)
    except Exception as error:
        found["join"] = f"{type(error).__name__}: {error}"

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_differences({"torch": f"2.11.{rank}"})
    found["versions"] = [str(one.message) for one in caught]

    monitor = RankMonitor(5, 1000)
    model = make_model()
    numbers = {"stop": False, "waited": 0.0, "seconds": 1.0}
    for step, flipped in ((5, False), (10, rank == 1)):
        if flipped:
            with torch.no_grad():
                model.module[0].weight.view(torch.int32)[3, 3] ^= 1
        hashed = parameter_hash(model.parameters())
        assert monitor.exchange(step, parameters=hashed, **numbers) is None or step == 10
    try:
        monitor.finish()
    except ConfigMismatch as error:
        found["diverged"] = str(error)
    stopping = RankMonitor(5, 1000)
    stopping.exchange(5, parameters=None, **{**numbers, "stop": rank == 2})
    report = stopping.exchange(10, parameters=None, **numbers)
    found["stop"] = report is not None and report.stop
    stopping.finish()
    found["schedule"] = schedule(rank)
    dist.barrier()
    return found


def schedule(rank: int) -> list[int]:
    """Return the steps after which a monitor wants to hear, of steps that become ten times slower."""
    monitor, seconds, due = RankMonitor(10, 1000), 0.0, []
    for step in range(1, 820):
        seconds += (2 + rank) * (1e-3 if step <= 270 else 1e-2)
        if monitor.due(step):
            due.append(step)
            monitor.exchange(step, stop=False, waited=0.0, seconds=seconds, parameters=None)
    monitor.finish()
    return due


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    return run_forked(outcomes, 3)


def test_nan_of_one_rank_is_named_with_its_parameter_on_all(results: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(results):
        assert f"rank {rank}/3 step 1" in found["raise"]
        assert "NaN or infinity in rank 1's gradient of 0.weight" in found["raise"]
        assert "rank 0's" not in found["raise"] and "rank 2's" not in found["raise"]
        assert found["kept"]


def test_zero_puts_zeros_in_the_place_of_nan_and_all_go_on(results: list[dict[str, Any]]) -> None:
    for found in results:
        assert all(torch.isfinite(gradient).all() for gradient in found["zero"])
        assert any(gradient.any() for gradient in found["zero"])
        assert all(
            torch.equal(a, b) for a, b in zip(found["zero"], results[0]["zero"], strict=True)
        )


def test_join_is_refused_with_a_reason(results: list[dict[str, Any]]) -> None:
    for found in results:
        assert found["join"].startswith(UnsupportedSetup.__name__), found["join"]
        assert "drop_last" in found["join"]


def test_patch_releases_may_differ_with_a_warning(results: list[dict[str, Any]]) -> None:
    (warning,) = results[0]["versions"]
    assert "torch: rank 0 has 2.11.0, rank 1 has 2.11.1, rank 2 has 2.11.2" in warning


def test_minor_releases_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for version in ("2.11.0+cpu", "2.11.3", "2.12.0"):
        monkeypatch.setattr(torch, "__version__", version)
        found.append(versions.required_versions())
    assert found[0] == found[1] != found[2]


def test_one_flipped_bit_is_named_on_every_rank(results: list[dict[str, Any]]) -> None:
    for found in results:
        assert "after step 10: those of rank(s) 1 are not those of the others" in found["diverged"]


def test_all_ranks_learn_at_the_same_step_that_one_is_to_stop(
    results: list[dict[str, Any]],
) -> None:
    assert all(found["stop"] for found in results)


def test_ranks_compare_about_once_a_second_at_steps_all_can_tell(
    results: list[dict[str, Any]],
) -> None:
    for found in results:
        # the slowest rank takes 4 ms per step, so 250 steps a second; from step 271 on 40 ms
        assert found["schedule"] == [10, 20, 270, 520, 770, 790, 810]


@pytest.mark.slow
def test_a_flipped_weight_ends_the_run_with_64(tmp_path: Path) -> None:
    fault = Fault(rank=2, step=11, action="flip", place="after step")
    options = ("--compare-every", "5")
    with Job.start(tmp_path, training(tmp_path, *options, timeout=60), fault=fault) as job:
        assert job.join() == [64, 64, 64]
        for rank in range(3):
            assert "those of rank(s) 2 are not those of the others" in job.output(rank)


@pytest.mark.slow
def test_nan_ends_the_run_with_68(tmp_path: Path) -> None:
    fault = Fault(rank=0, step=6, action="nan")
    with Job.start(tmp_path, training(tmp_path, timeout=60), fault=fault) as job:
        assert job.join() == [68, 68, 68]
        assert all("rank 0's gradient of" in job.output(rank) for rank in range(3))


def test_the_hash_sees_every_bit() -> None:
    parameters = [torch.zeros(7), torch.ones(3, 2, dtype=torch.bfloat16), torch.zeros(())]
    hashes = {parameter_hash(parameters)}
    for parameter in parameters:
        kind = torch.int32 if parameter.element_size() == 4 else torch.int16
        words = parameter.view(kind).view(-1)
        for bit in range(8 * parameter.element_size() - 1):
            words[-1] ^= 1 << bit
            hashes.add(parameter_hash(parameters))
            words[-1] ^= 1 << bit
    assert len(hashes) == 1 + 31 + 15 + 31
