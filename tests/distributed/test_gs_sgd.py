"""gs-SGD in merged directions: against a second implementation, and what it promises."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gsdist.collectives import LocalGroup, run_together
from gsdist.errors import ConfigError, ConfigMismatch
from gsdist.reducers import GsSgdConfig
from gsdist.reducers.agreement_lanes import LANES
from gsdist.reducers.draw_seed import draw_seed
from gsdist.reducers.gs_sgd_config import ByteBudget
from gsdist.reducers.matrix_basis import sketch_columns
from tests.distributed.reducer_driver import (
    SHAPES,
    SKETCHED,
    exchange,
    flatten,
    make_layout,
    make_reducer,
    normal_gradients,
)

STEPS = 24
CONFIG = GsSgdConfig(
    compression=8.0, wire_dtype="float32", min_numel=600, max_directions=80, refresh_interval=5
)
ONE_SIDED = replace(CONFIG, one_sided_above=700)
"""All but the third matrix, which has 660 entries, keep their shorter side whole."""
Gradients = dict[str, Tensor]


def directed_gradients(step: int) -> Gradients:
    """Draw gradients with fixed directions of rows and columns, each 0.6 times as heavy as the one before."""
    axes, draws = torch.Generator().manual_seed(1), torch.Generator().manual_seed(100 + step)
    gradients = {}
    for name, shape in SHAPES.items():
        rows, columns = shape[0], int(np.prod(shape[1:]))
        left, right = (
            torch.linalg.qr(torch.randn(side, side, generator=axes)).Q * 0.6 ** torch.arange(side)
            for side in (rows, columns)
        )
        core = torch.randn(rows, columns, generator=draws)
        gradients[name] = (10 * left @ core @ right.mT).reshape(shape)
    return gradients


def split(gradients: Gradients, workers: int, seed: int) -> list[Gradients]:
    """Split gradients into unequal parts whose mean they are."""
    generator = torch.Generator().manual_seed(seed)
    parts = [
        {n: g + torch.randn(g.shape, generator=generator) for n, g in gradients.items()}
        for _ in range(workers)
    ]
    for name, gradient in gradients.items():
        correction = gradient - sum(part[name] for part in parts) / workers
        for part in parts:
            part[name] += correction
    return parts


def run(
    config: GsSgdConfig,
    workers: int,
    *,
    gradients: Callable[[int], Gradients] = directed_gradients,
    steps: int = STEPS,
    prepare: Callable[[int, Any], None] = lambda rank, reducer: None,
) -> list[list[tuple[Gradients, Tensor, int]]]:
    """Return per worker and step: averages, residual, payload bytes."""
    layout = make_layout(config)

    def work(group: LocalGroup) -> list[tuple[Gradients, Tensor, int]]:
        reducer = make_reducer(config, group)
        history = []
        for step in range(steps):
            if step == steps - 1:
                prepare(group.rank(), reducer)
            part = split(gradients(step), workers, step)[group.rank()]
            averages = exchange(reducer, part, layout=layout)
            payload = reducer.statistics().payload_bytes_last_step
            history.append((averages, flatten(reducer.state_for_new_layout()["residual"]), payload))
        return history

    return run_together(LocalGroup.create(workers, timeout=60), work)


class SecondImplementation:
    """The method for one worker in float64, with whole covariances and nothing clever."""

    def __init__(self, config: GsSgdConfig) -> None:
        self.config, self.layout = config, make_layout(config)
        self.budget = ByteBudget.of(config, self.layout)
        self.step, self.due, self.elapsed = 0, 0, 1
        self.shapes = {n: (SHAPES[n][0], int(np.prod(SHAPES[n][1:]))) for n in SKETCHED}
        self.residual = {n: np.zeros(s) for n, s in self.shapes.items()}
        self.rows = {n: np.zeros((s[0], s[0])) for n, s in self.shapes.items()}
        self.columns = {n: np.zeros((s[1], s[1])) for n, s in self.shapes.items()}
        self.bases = {n: self.axes(n) for n in self.shapes}
        sides = {n: (left.shape[1], right.shape[1]) for n, (left, right) in self.bases.items()}
        self.energy = {n: np.zeros(s) for n, s in sides.items()}
        self.age = {n: np.ones(s) for n, s in sides.items()}

    def axes(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return all heavy axes; of a one-sided matrix 20 on the longer side, the other left as it is."""
        rows, columns = self.shapes[name]
        if rows * columns <= self.config.one_sided_above:
            return heavy_axes(self.rows[name], rows), heavy_axes(self.columns[name], columns)
        if rows > columns:
            return heavy_axes(self.rows[name], 20), np.eye(columns)
        return np.eye(rows), heavy_axes(self.columns[name], 20)

    def exchange(self, gradients: Gradients) -> dict[str, np.ndarray]:
        for name in SKETCHED:
            gradient = gradients[name].double().numpy().reshape(self.shapes[name])
            self.residual[name] = self.residual[name] + gradient
        applied = self.refresh() if self.step == self.due else self.coefficients()
        for name in SKETCHED:
            self.residual[name] = self.residual[name] - applied[name]
        self.step += 1
        return applied

    def coefficients(self) -> dict[str, np.ndarray]:
        scores = np.concatenate([(self.energy[n] * self.age[n]).ravel() for n in SKETCHED])
        chosen = np.zeros(scores.size, dtype=bool)
        chosen[np.argsort(-scores, kind="stable")[: self.budget.coefficients]] = True
        applied, start = {}, 0
        for name in SKETCHED:
            left, right = self.bases[name]
            size = left.shape[1] * right.shape[1]
            mask = chosen[start : start + size].reshape(left.shape[1], right.shape[1])
            start += size
            values = mask * (left.T @ self.residual[name] @ right)
            gain = values**2 / self.age[name]
            kept = 0.9 * self.energy[name] + 0.1 * gain
            self.energy[name] = np.where(mask, kept, self.energy[name])
            self.age[name] = np.where(mask, 1.0, self.age[name] + 1.0)
            applied[name] = left @ values @ right.T
            self.learn(name, applied[name])
        self.elapsed += 1
        return applied

    def refresh(self) -> dict[str, np.ndarray]:
        applied = {}
        for name, segment in zip(SKETCHED, self.layout.compressed, strict=True):
            seed = draw_seed(self.config.seed, self.step, segment.offset)
            rank = self.budget.ranks[name]
            sketch = sketch_columns(self.shapes[name][1], rank, seed).double().numpy()
            basis = np.linalg.qr(self.residual[name] @ sketch)[0]
            applied[name] = basis @ basis.T @ self.residual[name]
            self.turn(name, applied[name])
        self.due = self.step + min(self.budget.interval, max(1, self.step // 3))
        self.elapsed = 1
        return applied

    def turn(self, name: str, applied: np.ndarray) -> None:
        old_left, old_right = self.bases[name]
        before = (old_left.T @ applied @ old_right) ** 2
        self.learn(name, applied)
        left, right = self.bases[name] = self.axes(name)
        after = (left.T @ applied @ right) ** 2
        if self.step == 0:
            self.energy[name] = np.outer(after.sum(1), after.sum(0)) / after.sum()
            return
        from_left, from_right = (left.T @ old_left) ** 2, (right.T @ old_right) ** 2
        known = 0.9 * self.energy[name] + 0.1 * before / self.age[name]
        unknown = np.maximum(after - from_left @ before @ from_right.T, 0) / self.elapsed
        self.energy[name] = from_left @ known @ from_right.T + 0.1 * unknown
        self.age[name] = np.ones_like(after)

    def learn(self, name: str, applied: np.ndarray) -> None:
        decay = self.config.direction_decay
        self.rows[name] = decay * self.rows[name] + applied @ applied.T
        self.columns[name] = decay * self.columns[name] + applied.T @ applied


def heavy_axes(covariance: np.ndarray, count: int) -> np.ndarray:
    """Return eigenvectors, those of (nearly) zero replaced by arbitrary but repeatable ones."""
    values, vectors = np.linalg.eigh(covariance)
    known = vectors[:, values > 1e-6 * max(values[-1], 0)][:, ::-1][:, :count]
    size = len(values), count - known.shape[1]
    others = torch.randn(size, generator=torch.Generator().manual_seed(0))
    return np.linalg.qr(np.hstack([known, others.double().numpy()]))[0]


@pytest.mark.parametrize("config", [CONFIG, ONE_SIDED])
def test_a_second_implementation_gives_the_same_updates(config: GsSgdConfig) -> None:
    second = SecondImplementation(config)
    payloads = set()
    for step, (averages, _, payload) in enumerate(run(config, 1)[0]):
        expected = second.exchange(directed_gradients(step))
        for name in SKETCHED:
            got = averages[name].double().numpy().reshape(expected[name].shape)
            error = np.linalg.norm(got - expected[name]) / np.linalg.norm(expected[name])
            assert error < 1e-2, (step, name, error)
        payloads.add(payload)
    assert len(payloads) == 2  # both kinds of steps were compared


@pytest.mark.parametrize("workers", [2, 5])
def test_how_the_data_is_split_does_not_matter(workers: int) -> None:
    for (alone, _, _), (together, _, _) in zip(
        run(CONFIG, 1)[0], run(CONFIG, workers)[0], strict=True
    ):
        expected, got = flatten(alone), flatten(together)
        assert float((got - expected).norm() / expected.norm()) < 2e-3


@pytest.mark.parametrize("config", [CONFIG, ONE_SIDED, replace(CONFIG, warmup_steps=6)])
@pytest.mark.parametrize("wire_dtype", ["float32", "float16"])
def test_nothing_is_lost_and_all_ranks_hold_the_same_bits(
    config: GsSgdConfig, wire_dtype: Any
) -> None:
    workers = 3
    histories = run(replace(config, wire_dtype=wire_dtype), workers)
    offered = torch.zeros_like(flatten(directed_gradients(0)), dtype=torch.float64)
    tolerance = {"float32": 1e-5, "float16": 2e-3}[wire_dtype]
    for step in range(STEPS):
        averages, residuals = histories[0][step][0], [h[step][1] for h in histories]
        for history in histories[1:]:
            assert all(torch.equal(history[step][0][n], averages[n]) for n in SHAPES)
        offered += workers * flatten(directed_gradients(step)).double()
        applied = workers * flatten(averages).double()
        kept = sum(residual.double() for residual in residuals)
        assert float((offered - applied - kept).norm() / offered.norm()) < tolerance
        offered = kept.clone()


def test_heavy_directions_are_followed() -> None:
    """With 1/8 of the bytes nearly all is applied; an eighth of random coefficients would not do."""
    applied = sum(flatten(averages) for averages, _, _ in run(CONFIG, 1)[0])
    total = sum(flatten(directed_gradients(step)) for step in range(STEPS))
    assert float((applied - total).norm() / total.norm()) < 0.15


def test_everything_at_once_is_dense_in_both_kinds_of_steps() -> None:
    config = replace(CONFIG, compression=1.0, wire_dtype="float16", refresh_interval=10)
    histories = run(config, 2, gradients=normal_gradients)[0]
    for step, (averages, _, _) in enumerate(histories):
        for name, expected in normal_gradients(step).items():
            assert float((averages[name] - expected).norm() / expected.norm()) < 2e-3
    assert len({payload for _, _, payload in histories[2:]}) >= 2


@pytest.mark.parametrize("wire_dtype", ["float32", "float16"])
@pytest.mark.parametrize("compression", [3.0, 8.0])
def test_the_mean_of_an_interval_is_the_compression_asked_for(
    wire_dtype: Any, compression: float
) -> None:
    config = replace(CONFIG, wire_dtype=wire_dtype, compression=compression)
    steps = 40  # the last two intervals have their full length
    payloads = [payload for _, _, payload in run(config, 1, steps=steps)[0]]
    refreshes = [step for step in range(1, steps) if payloads[step] != payloads[step - 1]][-3::2]
    begin, end = refreshes[0], refreshes[1]
    assert end - begin == ByteBudget.of(config, make_layout(config)).interval
    dense = 4 * sum(torch.Size(shape).numel() for shape in SHAPES.values())
    assert 0.97 < sum(payloads[begin:end]) * compression / (dense * (end - begin)) <= 1.0


def test_whole_gradients_travel_in_half_precision_after_the_first() -> None:
    config = replace(CONFIG, wire_dtype="float16", warmup_steps=5)
    layout = make_layout(config)
    numbers = layout.compressed_size + layout.dense_size + 1 + LANES
    history = run(config, 2, gradients=normal_gradients, steps=5)[0]
    assert [payload for _, _, payload in history] == [4 * numbers] + 4 * [2 * numbers]
    for step, (averages, residual, _) in enumerate(history):
        expected = flatten(normal_gradients(step))
        assert float((flatten(averages) - expected).norm() / expected.norm()) < 1e-3
        assert float(residual.norm() / expected.norm()) < 2**-11


def test_a_sum_too_large_for_half_precision_is_repeated() -> None:
    def growing(step: int) -> Gradients:
        size = 1e5 if step == STEPS - 1 else 1.0
        return {name: size * gradient for name, gradient in directed_gradients(step).items()}

    half = run(replace(CONFIG, wire_dtype="float16"), 2, gradients=growing)[0]
    exact = run(CONFIG, 2, gradients=growing)[0]
    expected, got = flatten(exact[-1][0]), flatten(half[-1][0])
    assert torch.isfinite(got).all()
    assert float(got.norm() / expected.norm()) == pytest.approx(1, abs=0.2)
    assert half[-1][2] > 2 * half[-2][2]


def test_masked_coordinates_stay_untouched() -> None:
    mask = {"second": torch.ones(SHAPES["second"])}
    mask["second"][:, ::2] = 0.0
    histories = run(CONFIG, 2, prepare=lambda rank, reducer: reducer.set_mask(mask))
    averages, residual, _ = histories[0][-1]
    start = torch.Size(SHAPES["first"]).numel()
    kept = residual[start : start + 70 * 50].view(SHAPES["second"])
    assert not averages["second"][:, ::2].any() and not kept[:, ::2].any()
    assert averages["second"][:, 1::2].any() and kept[:, 1::2].any()


def test_a_rank_with_another_basis_is_noticed_by_all() -> None:
    caught: list[int] = []

    def spoil(rank: int, reducer: Any) -> None:
        if rank == 1:
            state = reducer.state_dict()
            state["bases"]["first"]["left"][0, 0] += 1e-3
            reducer.load_state_dict(state)

    def work(group: LocalGroup) -> None:
        reducer = make_reducer(CONFIG, group)
        layout = make_layout(CONFIG)
        for step in range(STEPS):
            exchange(reducer, directed_gradients(step), layout=layout)
        spoil(group.rank(), reducer)
        with pytest.raises(ConfigMismatch, match="candidates"):
            exchange(reducer, directed_gradients(STEPS), layout=layout)
        caught.append(group.rank())

    run_together(LocalGroup.create(3, timeout=60), work)
    assert sorted(caught) == [0, 1, 2]


def test_state_of_another_size_is_refused() -> None:
    group = LocalGroup.create(1)[0]
    state = make_reducer(CONFIG, group).state_dict()
    smaller = make_reducer(replace(CONFIG, max_directions=8), group)
    with pytest.raises(ConfigError, match=r"max_directions=8 has 192"):
        smaller.load_state_dict(state)


@pytest.mark.parametrize(
    ("shape", "directions"),
    [
        ((10, 40), (10, 40)),
        ((256, 256), (64, 64)),
        ((256, 257), (None, 16)),  # more than 2^16 entries
        ((1000, 300), (16, None)),
        ((16, 2**15), (16, 16)),
    ],
)
def test_large_matrices_have_directions_on_one_side(
    shape: tuple[int, int], directions: tuple[int | None, int | None]
) -> None:
    assert GsSgdConfig().directions_of(shape) == directions


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("compression", 0.5),
        ("compression", float("nan")),
        ("refresh_interval", 0),
        ("refresh_share", 1.0),
        ("direction_decay", 1.0),
        ("max_directions", 0),
        ("one_sided_above", -1),
        ("wire_dtype", "bfloat16"),
        ("seed", -1),
        ("warmup_steps", -1),
    ],
)
def test_bad_settings_are_named(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{field} is .*must be"):
        GsSgdConfig(**{field: value})


def test_a_compression_that_leaves_nothing_names_the_limit() -> None:
    config = replace(CONFIG, compression=200.0)
    with pytest.raises(ConfigError, match=r"compression=200 leaves 108 bytes.*below 110"):
        make_reducer(config, LocalGroup.create(1)[0])
    make_reducer(replace(config, compression=20.0), LocalGroup.create(1)[0])


def column_sets(columns: int, rank: int) -> Sequence[Tensor]:
    return [sketch_columns(columns, rank, seed) for seed in range(200)]


def test_a_sketch_puts_each_column_in_one_bucket_with_a_fair_sign() -> None:
    sketches = torch.stack(list(column_sets(30, 7)))
    assert (sketches.abs().sum(dim=2) == 1).all()
    filled = sketches.abs().sum(dim=1)
    assert filled.min() == 4 and filled.max() == 5
    # the square of a sketch's length is, in the mean, that of the vector
    vector = torch.randn(30, generator=torch.Generator().manual_seed(0))
    lengths = (vector @ sketches).square().sum(dim=1)
    standard_error = float(lengths.std()) / 200**0.5
    assert abs(float(lengths.mean() - vector.square().sum())) < 4 * standard_error
