"""Measure the recovered energy for several block sizes on gradients captured during training.

A small residual net is trained with exact top-k, error feedback and momentum correction, as gs-SGD
would with a perfect sketch. At some steps the workers' vectors are kept. Each is then sketched with
ideal random block hashing (NumPy's generator, not the format's hash, so that only the block size
differs) and with format 1 itself, and gs-SGD's selection is done on the estimates: p2*k candidates,
of which the k with the largest exact sums are taken. Energy is the squared norm of the taken
coordinates over that of the exact top k of the sum. Error feedback makes vectors flat, so that even
candidates drawn at random have some of it; the rows `random` say how much.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader

from gsdist.data import load_dataset, normalize
from gsdist.models import build_model
from gsdist.sketch import CountSketch, SketchFormat
from gsdist.sketch.select import top_k

BLOCK_SIZES = (1, 8, 16, 32, 64, 128)
SKETCHED = ("whole", "local top-2k", "gradient")
ROWS = 5
CANDIDATE_FACTOR = 4
ALIGNMENT = 128
"""Where parameters may start, for all block sizes alike: a multiple of each of them."""
MIN_NUMEL = 2048

Vector = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """Say what is trained and what is sketched."""

    model: str = "resnet8"
    """Network of gsdist.models."""
    data: str = "cifar10"
    """Data set of gsdist.data, already fetched."""
    steps: int = 240
    """Training steps; the vectors of four steps, evenly spaced, are kept."""
    workers: int = 4
    """Simulated workers; the global batch is 128."""
    densities: tuple[float, ...] = (0.004, 0.01)
    """k / d; one training run each."""
    column_factors: tuple[int, ...] = (2, 10, 40)
    """Columns per selected coordinate."""
    seeds: int = 16
    """Random hash functions per captured vector."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Report one block size in one setting."""

    density: float
    columns_over_k: int
    sketched: str
    """`whole` vector, sum of each worker's `local top-2k`, or the `gradient` without residual."""
    block: str
    """Block size of ideal hashing, `format 1`, or `random`: candidates without any sketch."""
    energy: float
    """Mean over captured vectors and seeds."""
    sd_over_seeds: float
    """Standard deviation over seeds within one captured vector, pooled."""
    minus_block_1: float
    """Difference of the means from block size 1."""
    standard_error: float
    """Of that difference."""


def run(study: Study) -> Iterator[Row]:
    """Train, capture and sketch; yield the rows as they are done."""
    for density in study.densities:
        captured = list(capture(study, density))
        for factor, sketched in itertools.product(study.column_factors, SKETCHED):
            yield from compare(study, density, factor, sketched, captured)


def capture(study: Study, density: float) -> Iterator[tuple[Vector, Vector]]:
    """Train with exact top-k; yield what the workers would sketch and their gradients, (P, d)."""
    torch.manual_seed(0)
    dataset = load_dataset(study.data, "train", subset=10_000)
    form = dataset.format
    model = build_model(
        study.model,
        num_classes=form.num_classes,
        in_channels=form.channels,
        image_size=form.image_size,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = endless(DataLoader(dataset, 128 // study.workers, shuffle=True, drop_last=True))
    layout, size = offsets(model)
    residual = np.zeros((study.workers, size), np.float32)
    momentum, gradient = np.zeros_like(residual), np.zeros_like(residual)
    for step in range(1, study.steps + 1):
        for worker in range(study.workers):
            images, labels = next(batches)
            for parameter in layout:
                parameter.grad = None  # the small parameters' gradients add up over the workers
            prepared = normalize(images, form.mean, form.std)
            nn.functional.cross_entropy(model(prepared), labels).backward()
            gradient[worker] = flat_gradient(layout, size)
        momentum = 0.9 * momentum + gradient
        corrected = residual + momentum
        if step % (study.steps // 4) == 0:
            yield corrected.copy(), gradient.copy()
        total = corrected.sum(axis=0)
        chosen = top_k(total, round(density * size))
        residual[:] = corrected
        residual[:, chosen] = momentum[:, chosen] = 0
        applied = np.zeros(size, np.float32)
        applied[chosen] = total[chosen] / study.workers
        for parameter in model.parameters():
            if parameter in layout:
                start = layout[parameter]
                update = torch.from_numpy(applied[start : start + parameter.numel()])
                parameter.grad = update.view_as(parameter)
            else:
                parameter.grad /= study.workers
        optimizer.step()
        optimizer.zero_grad()


def endless(loader: DataLoader) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    while True:
        yield from loader


def offsets(model: nn.Module) -> tuple[dict[nn.Parameter, int], int]:
    """Give the larger parameters aligned places in a flat vector; return them and its size."""
    layout, end = {}, 0
    for parameter in model.parameters():
        if parameter.numel() >= MIN_NUMEL:
            layout[parameter] = end
            end += -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
    return layout, end


def flat_gradient(layout: dict[nn.Parameter, int], size: int) -> Vector:
    flat = np.zeros(size, np.float32)
    for parameter, offset in layout.items():
        flat[offset : offset + parameter.numel()] = parameter.grad.reshape(-1).numpy()
    return flat


def compare(
    study: Study, density: float, factor: int, sketched: str, captured: list[tuple[Vector, Vector]]
) -> Iterator[Row]:
    """Yield one row per block size for one setting."""
    baseline: NDArray[np.float64] | None = None
    for block in (*BLOCK_SIZES, "format 1", "random"):
        energies = np.array(
            [
                [
                    energy(
                        gradient if sketched == "gradient" else corrected,
                        density,
                        factor,
                        sketched,
                        block,
                        seed,
                    )
                    for seed in range(study.seeds)
                ]
                for corrected, gradient in captured
            ]
        )
        baseline = energies if baseline is None else baseline
        variances = [e.var(axis=1, ddof=1).mean() for e in (energies, baseline)]
        yield Row(
            density=density,
            columns_over_k=factor,
            sketched=sketched,
            block=str(block),
            energy=float(energies.mean()),
            sd_over_seeds=math.sqrt(variances[0]),
            minus_block_1=float(energies.mean() - baseline.mean()),
            standard_error=math.sqrt(sum(variances) / energies.size),
        )


def energy(
    vectors: Vector, density: float, factor: int, sketched: str, block: int | str, seed: int
) -> float:
    """Sketch one captured set of vectors, select as gs-SGD does and return the energy."""
    total = vectors.sum(axis=0)
    k = round(density * total.size)
    columns = math.ceil(factor * k / ALIGNMENT) * ALIGNMENT
    vector = sum_of_local_top(vectors, 2 * k) if sketched == "local top-2k" else total
    if block == "random":
        rng = np.random.default_rng(seed)
        candidates = rng.choice(total.size, CANDIDATE_FACTOR * k, replace=False)
    elif block == "format 1":
        sketch = CountSketch(
            SketchFormat(rows=ROWS, columns=columns, seed=seed, dimension=vector.size)
        )
        sketch.encode(vector)
        candidates, _ = sketch.heavy_hitters(CANDIDATE_FACTOR * k)
    else:
        estimates = ideal_estimates(vector, columns, int(block), seed)
        candidates = top_k(estimates, CANDIDATE_FACTOR * k)
    exact = np.square(total, dtype=np.float64)
    return float(np.sort(exact[candidates])[-k:].sum() / np.sort(exact)[-k:].sum())


def sum_of_local_top(vectors: Vector, count: int) -> Vector:
    kept = np.zeros_like(vectors)
    for row, vector in zip(kept, vectors, strict=True):
        chosen = top_k(vector, count)
        row[chosen] = vector[chosen]
    return kept.sum(axis=0)


def ideal_estimates(vector: Vector, columns: int, block: int, seed: int) -> Vector:
    """Sketch with random block hashing and return the median estimates of all coordinates."""
    rng = np.random.default_rng([seed, block])
    blocks, lanes = vector.size // block, np.arange(block)
    rows = np.empty((ROWS, vector.size), np.float32)
    for row in rows:
        first = rng.integers(0, columns // block, (blocks, 1)) * block
        cells = (first + (lanes ^ rng.integers(0, block, (blocks, 1)))).reshape(-1)
        signs = 1 - 2 * rng.integers(0, 2, vector.size, dtype=np.int8)
        table = np.bincount(cells, signs * vector, columns).astype(np.float32)
        row[:] = signs * table[cells]
    return np.sort(rows, axis=0)[ROWS // 2]
