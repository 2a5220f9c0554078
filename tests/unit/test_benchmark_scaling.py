"""The scaling benchmark on made-up gradients, against counts made by hand."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.gradients import CAPTURES, CapturedGradients
from benchmarks.scaling.count import count_gradients

SHAPE = (128, 64)
K = 82  # 1 % of 8192
LANES = 4 * (1 + 32)
TABLE = 2 * (5 * 192 + 1)  # float16, 2 K columns rounded up to whole blocks, and the flag
VALUES = 4 * 4 * K + LANES


@pytest.fixture
def gradients(tmp_path: Path) -> CapturedGradients:
    for worker in range(8):
        for step in range(CAPTURES):
            values = np.random.default_rng([worker, step]).normal(size=128 * 64)
            np.save(tmp_path / f"worker{worker}-step{step}.npy", values.astype(np.float32))
    return CapturedGradients(model="made up", shapes={"weight": SHAPE}, folder=str(tmp_path))


@pytest.mark.parametrize(("workers", "levels"), [(4, 2), (5, 3), (8, 3)])
def test_tree_is_counted_message_by_message(
    gradients: CapturedGradients, workers: int, levels: int
) -> None:
    row = count_gradients("gs-sgd-paper-tree", gradients, workers, density=0.01)
    assert row.point_to_point_messages == 2 * 2 * levels
    assert row.point_to_point_bytes == row.predicted_bytes == 2 * levels * (TABLE + VALUES)


def test_ring_stays_flat_and_all_gather_grows(gradients: CapturedGradients) -> None:
    for workers in (4, 8):
        ring = count_gradients("gs-sgd-paper", gradients, workers, density=0.01)
        assert ring.predicted_bytes == 2 * (workers - 1) / workers * (TABLE + VALUES)
        gathered = count_gradients("top-k", gradients, workers, density=0.01)
        lanes = 2 * (workers - 1) / workers * LANES
        assert gathered.predicted_bytes == (workers - 1) * 8 * K + lanes
