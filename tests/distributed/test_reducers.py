"""What every compressed method promises, and what each one does, on 1, 2, 3 and 5 gloo processes."""

import warnings
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

import gsdist
from gsdist.collectives import LocalGroup, run_together
from gsdist.errors import NonFiniteGradient
from gsdist.reducers import (
    GsSgdConfig,
    GsSgdPaperConfig,
    GTopKConfig,
    MomentumCorrection,
    OkTopKConfig,
    PowerSgdConfig,
    RandomKConfig,
    ReducerConfig,
    SketchedSgdConfig,
    TopKConfig,
)
from tests.distributed.harness import run_ranks
from tests.distributed.reducer_driver import (
    SHAPES,
    exchange,
    flatten,
    integer_gradients,
    make_layout,
    make_reducer,
    normal_gradients,
)

STEPS = 4
TOTAL = flatten(normal_gradients(0)).numel()
COMMON: dict[str, Any] = {"warmup_steps": 1, "min_numel": 600}
SPARSE: dict[str, Any] = {**COMMON, "density": 0.01}
K = round(0.01 * TOTAL)

METHODS: Mapping[str, ReducerConfig] = {
    "gs-sgd": GsSgdConfig(**COMMON, compression=4.0, wire_dtype="float32"),
    "gs-sgd-paper": GsSgdPaperConfig(**SPARSE),
    "gs-sgd-paper tree": GsSgdPaperConfig(**SPARSE, wire_dtype="float32", collective="tree"),
    "top-k": TopKConfig(**SPARSE),
    "proposals": TopKConfig(**SPARSE, exchange="proposals"),
    "g-top-k": GTopKConfig(**SPARSE),
    "g-top-k original": GTopKConfig(**SPARSE, dropped="forget"),
    "ok-top-k": OkTopKConfig(**SPARSE),
    "sketched-sgd": SketchedSgdConfig(**SPARSE),
    "sketched-sgd float32": SketchedSgdConfig(**SPARSE, wire_dtype="float32"),
    "random-k": RandomKConfig(**SPARSE),
    "power-sgd": PowerSgdConfig(**COMMON, rank=2),
    "power-sgd float16": PowerSgdConfig(**COMMON, rank=2, wire_dtype="float16"),
}
EVERYTHING: Mapping[str, ReducerConfig] = {
    "gs-sgd": GsSgdConfig(**COMMON, compression=1.0, wire_dtype="float32"),
    "gs-sgd-paper": GsSgdPaperConfig(**{**SPARSE, "density": 1.0, "masking": False}),
    "top-k": TopKConfig(**{**SPARSE, "density": 1.0, "masking": False}),
    "proposals": TopKConfig(
        **{**SPARSE, "density": 1.0, "masking": False}, exchange="proposals", proposal_factor=9.0
    ),
    "g-top-k": GTopKConfig(**{**SPARSE, "density": 1.0, "masking": False}),
    "ok-top-k": OkTopKConfig(**{**SPARSE, "density": 1.0, "masking": False}),
    "sketched-sgd": SketchedSgdConfig(**{**SPARSE, "density": 1.0, "masking": False}),
    "random-k": RandomKConfig(**{**SPARSE, "density": 1.0, "masking": False}),
    "power-sgd": PowerSgdConfig(**COMMON, rank=50),
}
MOMENTUM_CORRECTED = (
    GsSgdConfig,
    TopKConfig,
    GTopKConfig,
    OkTopKConfig,
    SketchedSgdConfig,
    RandomKConfig,
    PowerSgdConfig,
)
LOSES_MASS = {"g-top-k original"}


def run_steps(
    config: ReducerConfig, rank: int, draw: Any, group: LocalGroup | None = None
) -> list[tuple[Any, Any, int]]:
    """Return averages, residual and payload bytes after every step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of these settings are useless on purpose
        reducer = make_reducer(config, group)
    history = []
    for step in range(STEPS):
        averages = exchange(reducer, draw(10 * step + rank), layout=make_layout(config))
        payload = reducer.statistics().payload_bytes_last_step
        history.append((averages, reducer.state_dict()["residual"], payload))
    return history


def survives_bad_gradient(config: ReducerConfig, rank: int, world_size: int) -> bool:
    """Tell whether a NaN on the last rank, compressed or not, raises here and changes nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reducers = [make_reducer(config) for _ in range(2)]
    layout = make_layout(config)
    for reducer in reducers:
        for step in range(2):
            exchange(reducer, normal_gradients(10 * step + rank), layout=layout)
    for name in ("second", "bias"):
        bad = normal_gradients(99 + rank)
        if rank == world_size - 1:
            bad[name].view(-1)[3] = float("nan")
        try:
            exchange(reducers[0], bad, layout=layout)
            return False
        except NonFiniteGradient:
            pass
    results = [exchange(r, normal_gradients(7 + rank), layout=layout) for r in reducers]
    return all(torch.equal(results[0][name], results[1][name]) for name in SHAPES)


def restores(config: ReducerConfig, rank: int) -> bool:
    """Tell whether a reducer built from saved state goes on with the same bits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first, second = make_reducer(config), make_reducer(config)
    layout = make_layout(config)
    for step in range(3):
        exchange(first, normal_gradients(10 * step + rank), layout=layout)
    second.load_state_dict(first.state_dict())
    results = [exchange(r, normal_gradients(50 + rank), layout=layout) for r in (first, second)]
    return all(torch.equal(results[0][name], results[1][name]) for name in SHAPES)


def with_momentum(config_type: Any, rank: int) -> list[Tensor]:
    """Send everything with Nesterov momentum before compression."""
    settings = {**COMMON, "momentum": "local", "warmup_steps": 0}
    if config_type is PowerSgdConfig:
        config = PowerSgdConfig(**settings, rank=50)
    elif config_type is GsSgdConfig:
        config = GsSgdConfig(**settings, compression=1.0, wire_dtype="float32")
    else:
        extra = (
            {"exchange": "proposals", "proposal_factor": 9.0} if config_type is TopKConfig else {}
        )
        config = config_type(**settings, density=1.0, masking=False, **extra)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reducer = make_reducer(config, momentum=MomentumCorrection(factor=0.9, nesterov=True))
    layout = make_layout(config)
    return [
        flatten(exchange(reducer, normal_gradients(10 * step + rank), layout=layout))
        for step in range(STEPS)
    ]


def experiments(rank: int, world_size: int) -> dict[str, Any]:
    return {
        "runs": {
            name: run_steps(config, rank, integer_gradients) for name, config in METHODS.items()
        },
        "everything": {
            name: run_steps(config, rank, normal_gradients) for name, config in EVERYTHING.items()
        },
        "bad": {n: survives_bad_gradient(c, rank, world_size) for n, c in METHODS.items()},
        "restored": {name: restores(config, rank) for name, config in METHODS.items()},
        "momentum": {kind.__name__: with_momentum(kind, rank) for kind in MOMENTUM_CORRECTED},
    }


@pytest.fixture(scope="module", params=[1, 2, 3, 5])
def results(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return run_ranks(experiments, request.param, timeout=110)


def offered_and_accounted(
    results: list[dict[str, Any]], method: str
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return per step: what went in (residuals and gradients), what was applied, what was kept."""
    steps = []
    kept = torch.zeros(TOTAL, dtype=torch.float64)
    for step in range(STEPS):
        drawn = [flatten(integer_gradients(10 * step + rank)) for rank in range(len(results))]
        offered = kept + sum(g.double() for g in drawn)
        averages = results[0]["runs"][method][step][0]
        kept = sum(flatten(r["runs"][method][step][1]).double() for r in results)
        steps.append((offered, len(results) * flatten(averages).double(), kept))
    return steps


@pytest.mark.parametrize("method", sorted(set(METHODS) - LOSES_MASS))
def test_nothing_is_lost_or_invented(results: list[dict[str, Any]], method: str) -> None:
    for offered, applied, kept in offered_and_accounted(results, method):
        torch.testing.assert_close(applied + kept, offered, rtol=1e-5, atol=2e-2)


def test_original_g_top_k_loses_mass_among_many_workers(results: list[dict[str, Any]]) -> None:
    """A sum is lost when one branch of the tree drops a coordinate that survives through another."""
    lost = max(
        float((offered - applied - kept).abs().max())
        for offered, applied, kept in offered_and_accounted(results, "g-top-k original")
    )
    if len(results) <= 2:  # the only merge: what it drops survives nowhere
        assert lost < 0.1
    if len(results) == 5:
        assert lost > 1.0


@pytest.mark.parametrize("method", sorted(METHODS))
def test_all_ranks_hold_the_same_bits(results: list[dict[str, Any]], method: str) -> None:
    for step in range(STEPS):
        for result in results[1:]:
            for name in SHAPES:
                expected = results[0]["runs"][method][step][0][name]
                assert torch.equal(result["runs"][method][step][0][name], expected)


@pytest.mark.parametrize("method", sorted(EVERYTHING))
def test_sending_everything_is_dense(results: list[dict[str, Any]], method: str) -> None:
    for step in range(STEPS):
        drawn = [normal_gradients(10 * step + rank) for rank in range(len(results))]
        for name in SHAPES:
            mean = sum(g[name] for g in drawn) / len(results)
            got = results[0]["everything"][method][step][0][name]
            torch.testing.assert_close(got, mean, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("method", [kind.__name__ for kind in MOMENTUM_CORRECTED])
def test_momentum_correction_of_everything_is_nesterov_momentum(
    results: list[dict[str, Any]], method: str
) -> None:
    velocity = torch.zeros(TOTAL)
    for step in range(STEPS):
        mean = sum(flatten(normal_gradients(10 * step + r)) for r in range(len(results)))
        mean = mean / len(results)
        velocity = 0.9 * velocity + mean
        torch.testing.assert_close(
            results[0]["momentum"][method][step], mean + 0.9 * velocity, rtol=1e-4, atol=5e-5
        )


@pytest.mark.parametrize("method", sorted(METHODS))
def test_bad_gradient_raises_everywhere_and_leaves_no_trace(
    results: list[dict[str, Any]], method: str
) -> None:
    assert all(result["bad"][method] for result in results)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_restored_state_continues_bit_identically(
    results: list[dict[str, Any]], method: str
) -> None:
    assert all(result["restored"][method] for result in results)


def test_top_k_applies_the_union_of_what_workers_find_largest(
    results: list[dict[str, Any]],
) -> None:
    residuals = [torch.zeros(TOTAL) for _ in results]
    for step in range(STEPS):
        applied = torch.zeros(TOTAL)
        for rank in range(len(results)):
            residuals[rank] += flatten(integer_gradients(10 * step + rank))
            if step == 0:  # the warm-up step sends everything
                chosen = torch.arange(TOTAL)
            else:
                order = residuals[rank].abs().sort(descending=True, stable=True).indices
                chosen = order[:K]
            applied[chosen] += residuals[rank][chosen]
            residuals[rank][chosen] = 0
        got = len(results) * flatten(results[0]["runs"]["top-k"][step][0])
        torch.testing.assert_close(got, applied, rtol=1e-6, atol=1e-3)


def test_random_k_draws_k_others_every_step(results: list[dict[str, Any]]) -> None:
    drawn = [
        set(torch.nonzero(flatten(results[0]["runs"]["random-k"][step][0])).flatten().tolist())
        for step in range(1, STEPS)
    ]
    assert all(K - 2 <= len(one) <= K for one in drawn)  # an integer sum can be zero by chance
    assert len(drawn[0] & drawn[1]) < K / 4


def test_server_and_tree_give_what_the_native_all_reduce_gives(
    results: list[dict[str, Any]],
) -> None:
    """On integers the order of summation is without effect: all must agree bit for bit in float32."""
    exact = run_one_gs_sgd_paper_float32(len(results))
    for method in ("sketched-sgd float32", "gs-sgd-paper tree"):
        reference = results[0]["runs"][method]
        for step in range(STEPS):
            for name in SHAPES:
                assert torch.equal(reference[step][0][name], exact[step][0][name])


def run_one_gs_sgd_paper_float32(world_size: int) -> Any:
    config = GsSgdPaperConfig(**SPARSE, wire_dtype="float32")
    return run_ranks(_gs_sgd_float32, world_size, config, timeout=60)[0]


def _gs_sgd_float32(rank: int, world_size: int, config: GsSgdPaperConfig) -> Any:
    return run_steps(config, rank, integer_gradients)


def test_power_sgd_update_has_the_asked_rank(results: list[dict[str, Any]]) -> None:
    for step in range(1, STEPS):
        averages = results[0]["runs"]["power-sgd"][step][0]
        for name in ("first", "second", "third"):
            matrix = averages[name].reshape(SHAPES[name][0], -1).double()
            values = torch.linalg.svdvals(matrix)
            assert int((values > 1e-5 * values[0]).sum()) == 2


@pytest.mark.parametrize(
    "method",
    ["gs-sgd", "gs-sgd-paper", "proposals", "random-k", "power-sgd", "power-sgd float16"],
)
def test_payload_does_not_grow_with_workers(results: list[dict[str, Any]], method: str) -> None:
    """Proposals shrink with P and fill up the exact round only as far as they differ."""
    payload = results[0]["runs"][method][-1][2]
    dense_set = sum(torch.Size(SHAPES[name]).numel() for name in ("bias", "small"))
    lanes = 4 * (1 + 32)
    power_sgd = 2 * (40 + 30 + 70 + 50 + 20 + 33) + dense_set + 2 * (1 + 32)
    bounds = {
        # a quarter of 10 steps' bytes lets a refresh have 10, 18 and 7 columns, in two rounds
        "gs-sgd": 4 * (10 * 70 + 18 * 120 + 7 * 53 + dense_set) + 2 * lanes,
        "gs-sgd-paper": 2 * 5 * 128 + 4 * 4 * K + 4 * dense_set + lanes + 2,
        "proposals": 4 * 2 * (K + 1) + 4 * 2 * (K + 5) + 4 * dense_set + lanes,
        "random-k": 4 * K + 4 * dense_set + lanes,
        "power-sgd": 4 * power_sgd,
        "power-sgd float16": 2 * power_sgd,
    }
    assert payload <= bounds[method]
    if method != "proposals":
        assert payload == bounds[method]


EXACT_ON_INTEGERS = [
    "gs-sgd-paper tree",
    "top-k",
    "proposals",
    "g-top-k",
    "ok-top-k",
    "sketched-sgd float32",
    "random-k",
]


@pytest.mark.parametrize("method", EXACT_ON_INTEGERS)
def test_threads_in_one_process_give_what_processes_give(
    results: list[dict[str, Any]], method: str
) -> None:
    groups = LocalGroup.create(len(results), timeout=30)
    emulated = run_together(
        groups, lambda g: run_steps(METHODS[method], g.rank(), integer_gradients, g)
    )
    for mine, result in zip(emulated, results, strict=True):
        for step in range(STEPS):
            for part in (0, 1):
                theirs = result["runs"][method][step][part]
                assert all(torch.equal(mine[step][part][name], theirs[name]) for name in theirs)
            assert mine[step][2] == result["runs"][method][step][2]


def test_a_failing_thread_ends_all() -> None:
    def fail_on_one(group: LocalGroup) -> None:
        if group.rank() == 1:
            raise ValueError("rank 1 gives up")
        group.allreduce([torch.zeros(3)])

    with pytest.raises(ValueError, match="rank 1 gives up"):
        run_together(LocalGroup.create(3, timeout=30), fail_on_one)


ROUNDS = 20


def errors_of_power_sgd(rank: int, world_size: int) -> dict[str, float]:
    """Feed one matrix again and again; return how far the mean of what was applied is from it."""
    generator = torch.Generator().manual_seed(3)
    left = torch.linalg.qr(torch.randn(64, 48, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(48, 48, generator=generator)).Q
    fixed = left @ torch.diag(0.8 ** torch.arange(48)) @ right.mT
    noise = torch.randn(64, 48, generator=torch.Generator().manual_seed(rank))
    own = fixed + 0.02 * noise
    mean = own.clone()
    dist.all_reduce(mean)
    mean /= world_size
    found = {}
    for name in ("torch", "gsdist"):
        torch.manual_seed(0)
        model = DistributedDataParallel(torch.nn.Linear(48, 64, bias=False))
        if name == "torch":
            settings = {"matrix_approximation_rank": 2, "start_powerSGD_iter": 2}
            state = PowerSGDState(None, min_compression_rate=1, **settings)
            model.register_comm_hook(state, powerSGD_hook)
        else:
            gsdist.attach(model, PowerSgdConfig(rank=2, warmup_steps=2, min_numel=0))
        applied = torch.zeros(64, 48)
        for step in range(ROUNDS + 2):
            model.zero_grad()
            # with the identity as input, the gradient of <model(I), own^T> is `own`
            (model(torch.eye(48)) * own.mT).sum().backward()
            if step >= 2:
                applied += model.module.weight.grad
        found[name] = float((applied / ROUNDS - mean).norm() / mean.norm())
    return found


def test_power_sgd_is_as_exact_as_the_hook_of_torch() -> None:
    """Both start from random factors, so errors are alike, not equal."""
    for found in run_ranks(errors_of_power_sgd, 2, timeout=60):
        assert found["gsdist"] < 0.5  # the best matrix of rank 2 alone has an error of 0.64
        assert 0.95 < found["gsdist"] / found["torch"] < 1.05, found
