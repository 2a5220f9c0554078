"""The toy comparison's judgement, its images, and the table of CPMC's weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.pruning.__main__ import main
from benchmarks.pruning.calibration import PUBLISHED, Calibrated, table
from benchmarks.pruning.toy import METHODS, Row, _pooled, check
from gsdist.data.images import ImageArrays, ImageFormat

ROW = Row(
    method="dense",
    seed=0,
    dense_accuracy=86.0,
    unmasked_accuracy=85.5,
    masked_accuracy=85.5,
    compact_accuracy=85.5,
    macs_ratio=0.3,
    params_ratio=0.3,
    max_abs_difference=1e-15,
    speedup=2.0,
    compression=1.0,
    effective_dimension=1000,
)


def rows(**accuracies):
    """Return a row for each method; names with spaces keep the accuracy of all others."""
    return [
        replace(ROW, method=method, compact_accuracy=accuracies.get(method.replace("-", "_"), 85.5))
        for method in METHODS
    ]


def test_the_expected_picture_holds():
    assert all(check(rows(dense=86.0, one_shot=15.0)).values())


@pytest.mark.parametrize(
    ("accuracies", "broken"),
    [
        ({"asrfp": 84.0, "hfp": 84.0}, "asrfp is at most 1.5 points below dense"),
        ({"srfp": 83.9}, "every method is within 2 points of dense"),
        ({"one_shot": 60.0}, "every method is 40 points above one-shot"),
        ({"hfp": 85.6}, "asrfp is at least as good as hfp"),
    ],
)
def test_each_expectation_can_fail(accuracies, broken):
    verdicts = check(rows(**{"dense": 86.0, "one_shot": 15.0, **accuracies}))
    assert [name for name, holds in verdicts.items() if not holds] == [broken]


def test_masks_that_cost_accuracy_and_networks_that_differ_are_seen():
    changed = [replace(ROW, unmasked_accuracy=86.0), replace(ROW, max_abs_difference=1e-9)]
    verdicts = check([replace(ROW, method="sfp"), *changed])
    assert not verdicts["the last masks cost less than 0.3 points"]
    assert not verdicts["compact networks answer as masked ones"]


def test_bytes_are_judged_where_gradients_are_compressed():
    assert "gs-sgd sends at most a tenth" not in check(rows())
    compressed = [replace(row, compression=11.0) for row in rows()]
    assert check(compressed)["gs-sgd sends at most a tenth"]
    assert not check([*compressed, replace(ROW, compression=9.0)])["gs-sgd sends at most a tenth"]


def test_images_are_averaged_over_two_by_two_pixels():
    pixels = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4, 1)
    image_format = ImageFormat(num_classes=10, channels=1, image_size=4, mean=(0.0,), std=(1.0,))
    data = _pooled(ImageArrays(pixels, np.arange(2), image_format), 1)
    assert len(data) == 1 and data.format.image_size == 2
    # Of 0, 1, 4 and 5 the mean is 2.5; halves are rounded to even.
    assert torch.equal(data[0][0], torch.tensor([[[2, 4], [10, 12]]], dtype=torch.uint8))


def test_the_table_of_weights_begins_with_the_best_pair():
    found = [
        Calibrated(
            model=model,
            cost_weight=cost,
            size_weight=0.5,
            parameters=1.0,
            flops=100.0,
            deviation=deviation,
            accepted=abs(deviation) < 0.15,
        )
        for cost, deviation in ((0.0, 0.3), (1.0, -0.1))
        for model in PUBLISHED
    ]
    lines = table(found).splitlines()
    assert lines[2].split()[:2] == ["1.00", "0.50"] and lines[2].count("*") == 3
    assert lines[3].split()[0] == "0.00" and "*" not in lines[3]


def test_weights_of_unknown_networks_are_refused():
    with pytest.raises(SystemExit, match="MODEL=FILE"):
        main(["--calibrate", "resnet20=weights.pt"])
