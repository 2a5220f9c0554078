"""The invariants of gs-SGD on 1 to 4 gloo processes, against hand-written references."""

from typing import Any

import pytest
import torch
from torch import Tensor

from gsdist.errors import ConfigMismatch, NonFiniteGradient
from gsdist.reducers import GsSgdPaperConfig, MomentumCorrection
from gsdist.reducers.gs_sgd_paper_reference import ReferenceState, gs_sgd_paper_step
from gsdist.sketch import SketchFormat
from tests.distributed.harness import run_ranks
from tests.distributed.reducer_driver import (
    SHAPES,
    SKETCHED,
    exchange,
    flatten,
    integer_gradients,
    make_layout,
    make_reducer,
    normal_gradients,
)

STEPS = 6
TOTAL = sum(torch.Size(SHAPES[name]).numel() for name in SKETCHED)
BASE = {"density": 0.01, "wire_dtype": "float32", "warmup_steps": 0, "min_numel": 600}
REORDERED = (("third", "small"), ("second",), ("bias", "first"))


def seed_of(step: int, rank: int) -> int:
    return 1000 * step + rank


def run_steps(
    config: GsSgdPaperConfig, rank: int, draw: Any = integer_gradients, **options: Any
) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Return (averages, residual) after every step."""
    buckets = options.pop("buckets", (tuple(SHAPES),))
    reducer, layout = make_reducer(config, **options), make_layout(config)
    history = []
    for step in range(STEPS):
        averages = exchange(reducer, draw(seed_of(step, rank)), layout=layout, buckets=buckets)
        history.append((averages, reducer.state_dict()["residual"]))
    return history


def all_experiments(rank: int, world_size: int) -> dict[str, Any]:
    """Run everything that needs processes once per world size; the tests below judge the results."""
    permuted = world_size - 1 - rank
    return {
        "paper": run_steps(GsSgdPaperConfig(**BASE), rank),
        "whole": run_steps(GsSgdPaperConfig(**BASE, preselect_factor=0), rank),
        "half": run_steps(GsSgdPaperConfig(**{**BASE, "wire_dtype": "float16"}), rank),
        "bfloat16": run_steps(GsSgdPaperConfig(**{**BASE, "wire_dtype": "bfloat16"}), rank),
        "ladder": run_steps(
            GsSgdPaperConfig(
                **{**BASE, "warmup_steps": 2}, density_ladder=(0.1,), density_ladder_steps=2
            ),
            rank,
        ),
        "permuted": run_steps(GsSgdPaperConfig(**BASE), permuted),
        "reordered": run_steps(GsSgdPaperConfig(**BASE), rank, buckets=REORDERED),
        "whole reordered": run_steps(
            GsSgdPaperConfig(**BASE, preselect_factor=0), rank, buckets=REORDERED
        ),
        "whole permuted": run_steps(GsSgdPaperConfig(**BASE, preselect_factor=0), permuted),
        "deterministic": run_steps(
            GsSgdPaperConfig(**BASE, preselect_factor=0, deterministic=True), rank, normal_gradients
        ),
        "deterministic reordered": run_steps(
            GsSgdPaperConfig(**BASE, preselect_factor=0, deterministic=True),
            rank,
            normal_gradients,
            buckets=REORDERED,
        ),
        "large table": run_steps(
            GsSgdPaperConfig(**BASE, preselect_factor=0, column_factor=1600), rank, normal_gradients
        ),
        "wide": run_steps(
            GsSgdPaperConfig(**BASE, column_factor=80 * world_size), rank, normal_gradients
        ),
        "momentum": run_steps(
            GsSgdPaperConfig(**BASE, momentum="local"),
            rank,
            momentum=MomentumCorrection(factor=0.5, nesterov=False),
        ),
        "nesterov": run_steps(
            GsSgdPaperConfig(**BASE, momentum="local", masking=False),
            rank,
            momentum=MomentumCorrection(factor=0.5, nesterov=True),
        ),
        "resumed": resumed(rank),
        "clipped": run_steps(GsSgdPaperConfig(**BASE, clip_norm=500.0), rank),
    }


def resumed(rank: int) -> bool:
    """Tell whether a reducer restored in the middle goes on with the same bits."""
    config = GsSgdPaperConfig(**{**BASE, "wire_dtype": "float16"}, momentum="local")
    momentum = MomentumCorrection(factor=0.9, nesterov=True)
    layout = make_layout(config)
    first = make_reducer(config, momentum=momentum)
    for step in range(3):
        exchange(first, normal_gradients(seed_of(step, rank)), layout=layout)
    second = make_reducer(config, momentum=momentum)
    second.load_state_dict(first.state_dict())
    gradients = normal_gradients(seed_of(3, rank))
    expected = exchange(first, gradients, layout=layout)
    restored = exchange(second, gradients, layout=layout)
    same = all(torch.equal(expected[name], restored[name]) for name in expected)
    states = (first.state_dict(), second.state_dict())
    return same and all(
        torch.equal(states[0][kind][name], states[1][kind][name])
        for kind in ("residual", "momentum")
        for name in states[0][kind]
    )


@pytest.fixture(scope="module", params=[1, 2, 3, 4])
def results(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return run_ranks(all_experiments, request.param, timeout=100)


EXACT = ("paper", "whole", "half", "bfloat16", "ladder")


@pytest.mark.parametrize("experiment", EXACT)
def test_nothing_is_lost_or_invented(results: list[dict[str, Any]], experiment: str) -> None:
    world_size = len(results)
    residual_sum = torch.zeros(TOTAL)
    for step in range(STEPS):
        gradients = [integer_gradients(seed_of(step, rank)) for rank in range(world_size)]
        offered = residual_sum + sum(flatten(g) for g in gradients)
        averages, _ = results[0][experiment][step]
        residual_sum = sum(flatten(result[experiment][step][1]) for result in results)
        torch.testing.assert_close(
            offered, world_size * flatten(averages) + residual_sum, rtol=1e-6, atol=1e-3
        )
        for name in ("bias", "small"):
            mean = sum(g[name] for g in gradients) / world_size
            torch.testing.assert_close(averages[name], mean, rtol=1e-6, atol=0)


@pytest.mark.parametrize("experiment", [*EXACT, "momentum", "nesterov", "clipped", "large table"])
def test_all_ranks_hold_the_same_bits(results: list[dict[str, Any]], experiment: str) -> None:
    for step in range(STEPS):
        for result in results[1:]:
            for name in SHAPES:
                assert torch.equal(
                    results[0][experiment][step][0][name], result[experiment][step][0][name]
                )


def test_selection_has_exactly_k_coordinates(results: list[dict[str, Any]]) -> None:
    k = round(0.01 * TOTAL)
    for averages, _ in results[0]["paper"]:
        assert int((flatten(averages) != 0).sum()) == k


def test_ladder_goes_from_dense_over_its_rungs_to_the_density(
    results: list[dict[str, Any]],
) -> None:
    counts = [int((flatten(averages) != 0).sum()) for averages, _ in results[0]["ladder"]]
    assert min(counts[:2]) > 0.9 * TOTAL
    assert counts[2:4] == [round(0.1 * TOTAL)] * 2
    assert counts[4:] == [round(0.01 * TOTAL)] * 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("paper", "permuted"),
        ("whole", "whole permuted"),
        ("paper", "reordered"),
        ("whole", "whole reordered"),
        ("deterministic", "deterministic reordered"),
    ],
)
def test_order_of_ranks_and_buckets_changes_no_bit(
    results: list[dict[str, Any]], one: str, other: str
) -> None:
    for step in range(STEPS):
        for name in SHAPES:
            assert torch.equal(results[0][one][step][0][name], results[0][other][step][0][name])


def exact_error_feedback(world_size: int, *, preselect: int | None) -> list[Tensor]:
    """Select without a sketch: exact sums of what the workers preselected choose 4k candidates."""
    k = round(0.01 * TOTAL)
    residuals = torch.zeros(world_size, TOTAL, dtype=torch.float64)
    applied = []
    for step in range(STEPS):
        for rank in range(world_size):
            residuals[rank] += flatten(normal_gradients(seed_of(step, rank))).double()
        offered = torch.zeros(TOTAL, dtype=torch.float64)
        for residual in residuals:
            kept = largest(residual, TOTAL if preselect is None else preselect)
            offered[kept] += residual[kept]
        candidates = largest(offered, 4 * k)
        sums = residuals.sum(0)[candidates]
        selected = candidates[largest(sums, k)]
        update = torch.zeros(TOTAL, dtype=torch.float64)
        update[selected] = residuals[:, selected].sum(0)
        residuals[:, selected] = 0
        applied.append(update)
    return applied


def largest(values: Tensor, count: int) -> Tensor:
    """Return the indices of the largest magnitudes, ties to the lowest index."""
    return values.abs().sort(descending=True, stable=True).indices[:count].sort().values


@pytest.mark.parametrize(
    ("experiment", "preselect"), [("wide", 2 * round(0.01 * TOTAL)), ("large table", None)]
)
def test_with_columns_to_spare_the_sketch_is_as_good_as_exact_sums(
    results: list[dict[str, Any]], experiment: str, preselect: int | None
) -> None:
    """At one worker this is exact top-k with error feedback; "wide" has 40 p1 k P columns."""
    world_size = len(results)
    expected = exact_error_feedback(world_size, preselect=preselect)
    for (averages, _), update in zip(results[0][experiment], expected, strict=True):
        torch.testing.assert_close(
            world_size * flatten(averages).double(), update, rtol=1e-5, atol=1e-5
        )


def test_exact_error_feedback_of_one_worker_is_plain_top_k() -> None:
    """Tie the reference above to the textbook: with one worker, preselection changes nothing."""
    residual, k = torch.zeros(TOTAL, dtype=torch.float64), round(0.01 * TOTAL)
    for step, update in enumerate(exact_error_feedback(1, preselect=2 * k)):
        residual += flatten(normal_gradients(seed_of(step, 0))).double()
        top = residual.abs().topk(k).indices
        plain = torch.zeros_like(residual).index_put((top,), residual[top])
        assert torch.equal(update, plain)
        residual -= plain


@pytest.mark.parametrize(
    ("experiment", "settings"),
    [
        ("paper", {"p1": 2.0}),
        ("whole", {"p1": 0.0}),
        ("momentum", {"p1": 2.0, "m": 0.5}),
        ("nesterov", {"p1": 2.0, "m": 0.5, "nesterov": True, "masking": False}),
    ],
)
def test_equals_the_paper_shaped_reference(
    results: list[dict[str, Any]], experiment: str, settings: dict[str, Any]
) -> None:
    world_size, layout = len(results), make_layout(GsSgdPaperConfig(**BASE))
    k = round(0.01 * TOTAL)
    columns = 64 * -(-2 * k // 64)
    sketch_format = SketchFormat(rows=5, columns=columns, seed=0, dimension=layout.compressed_size)
    zeros = torch.zeros(world_size, layout.compressed_size)
    state = ReferenceState(residual=zeros, momentum=zeros.clone())
    for step in range(STEPS):
        gradients = torch.zeros(world_size, layout.compressed_size)
        for rank in range(world_size):
            drawn = integer_gradients(seed_of(step, rank))
            layout.flatten_into(
                {name: drawn[name] for name in SKETCHED},
                compressed=gradients[rank],
                dense=None,
                subject="gradient",
            )
        applied = gs_sgd_paper_step(gradients, state, sketch_format, k=k, p2=4.0, **settings)
        averages, _ = results[0][experiment][step]
        expected = layout.unflatten(compressed=applied / world_size, dense=None)
        for name in SKETCHED:
            torch.testing.assert_close(averages[name], expected[name], rtol=1e-6, atol=0)
        for rank, result in enumerate(results):
            kept = layout.unflatten(compressed=state.residual[rank], dense=None)
            for name in SKETCHED:
                assert torch.equal(result[experiment][step][1][name], kept[name])


def test_restored_state_continues_bit_identically(results: list[dict[str, Any]]) -> None:
    assert all(result["resumed"] for result in results)


def test_clipping_bounds_each_workers_gradient(results: list[dict[str, Any]]) -> None:
    limit = 500.0 * len(results) ** 0.5
    averages, _ = results[0]["clipped"][0]
    for rank, result in enumerate(results):
        gradients = integer_gradients(seed_of(0, rank))
        norm = torch.cat([g.flatten() for g in gradients.values()]).norm()
        scaled = flatten(gradients) * (limit / norm)
        sent = flatten(averages) != 0
        residual = flatten(result["clipped"][0][1])
        torch.testing.assert_close(residual[~sent], scaled[~sent], rtol=1e-5, atol=1e-7)


# ---- things that go wrong ------------------------------------------------------------------------------


def unhappy_paths(rank: int, world_size: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    base = GsSgdPaperConfig(**BASE)
    layout = make_layout(base)
    bad = normal_gradients(rank)
    if rank == world_size - 1:
        bad["second"][3, 3] = float("nan")
    good = normal_gradients(10 + rank)

    for name, options in {"raise": {}, "scaled": {"loss_scaled": True}}.items():
        reducer = make_reducer(base, **options)
        exchange(reducer, normal_gradients(20 + rank), layout=layout)
        before = reducer.state_dict()["residual"]
        try:
            found[name] = exchange(reducer, bad, layout=layout)
        except NonFiniteGradient as error:
            found[name] = str(error)
        after = reducer.state_dict()["residual"]
        found[name + " kept"] = all(torch.equal(before[n], after[n]) for n in before)
        found[name + " after"] = exchange(reducer, good, layout=layout)
        found[name + " skipped"] = reducer.statistics().skipped_steps

    warming = make_reducer(GsSgdPaperConfig(**{**BASE, "warmup_steps": 3}, non_finite="skip"))
    found["skip"] = exchange(warming, bad, layout=layout)
    found["skip seen"] = warming.last_step_skipped
    found["skip after"] = exchange(warming, good, layout=layout)

    found["overflow"] = overflow(rank)
    found["scaled equals unscaled"] = loss_scale_is_transparent(rank)

    lagging = make_reducer(base)
    if rank == 0:
        lagging.load_state_dict({**lagging.state_dict(), "step": 7})
    try:
        exchange(lagging, good, layout=layout)
    except ConfigMismatch as error:
        found["mismatch"] = str(error)
    return found


def overflow(rank: int) -> bool:
    """A table that outgrows float16 between two steps must give what float32 gives."""
    outcomes = []
    for dtype in ("float16", "float32"):
        reducer = make_reducer(GsSgdPaperConfig(**{**BASE, "wire_dtype": dtype}))
        layout = make_layout(GsSgdPaperConfig(**BASE))
        exchange(reducer, integer_gradients(rank, largest=3), layout=layout)
        exchange(reducer, integer_gradients(rank, largest=3), layout=layout)
        outcomes.append(exchange(reducer, integer_gradients(rank, largest=2**19), layout=layout))
    return all(torch.equal(outcomes[0][name], outcomes[1][name]) for name in SHAPES)


def loss_scale_is_transparent(rank: int) -> bool:
    reducers = [make_reducer(GsSgdPaperConfig(**BASE), loss_scaled=True) for _ in range(2)]
    layout = make_layout(GsSgdPaperConfig(**BASE))
    for step, scale in enumerate((1024.0, 512.0, 2048.0)):
        gradients = normal_gradients(seed_of(step, rank))
        plain = exchange(reducers[0], gradients, layout=layout)
        scaled = exchange(reducers[1], gradients, layout=layout, scale=scale)
        if not all(torch.equal(plain[name] * scale, scaled[name]) for name in SHAPES):
            return False
    return True


@pytest.fixture(scope="module")
def unhappy() -> list[dict[str, Any]]:
    return run_ranks(unhappy_paths, 3, timeout=60)


def test_non_finite_gradient_raises_on_every_rank_and_changes_nothing(
    unhappy: list[dict[str, Any]],
) -> None:
    for rank, found in enumerate(unhappy):
        assert f"rank {rank}/3 step 1" in found["raise"]
        assert found["raise kept"]
        assert found["raise skipped"] == 1
        assert all(torch.isfinite(value).all() for value in found["raise after"].values())


def test_loss_scaler_sees_infinity_on_every_rank(unhappy: list[dict[str, Any]]) -> None:
    for found in unhappy:
        assert all(torch.isinf(value).all() for value in found["scaled"].values())
        assert found["scaled kept"]
        assert torch.equal(found["scaled after"]["first"], found["raise after"]["first"])


def test_skip_hands_back_zeros_also_in_warm_up(unhappy: list[dict[str, Any]]) -> None:
    mean = sum(normal_gradients(10 + rank)["first"] for rank in range(3)) / 3
    for found in unhappy:
        assert all(not value.any() for value in found["skip"].values())
        assert found["skip seen"]
        torch.testing.assert_close(found["skip after"]["first"], mean)


def test_half_precision_overflow_falls_back_to_float32(unhappy: list[dict[str, Any]]) -> None:
    assert all(found["overflow"] for found in unhappy)


def test_power_of_two_loss_scale_changes_no_bit(unhappy: list[dict[str, Any]]) -> None:
    assert all(found["scaled equals unscaled"] for found in unhappy)


def test_ranks_at_different_steps_are_told_apart(unhappy: list[dict[str, Any]]) -> None:
    for found in unhappy:
        assert "step: rank 0 has 7, rank 1 has 0, rank 2 has 0" in found["mismatch"]
