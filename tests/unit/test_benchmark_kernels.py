"""The kernel benchmark's report: programs read its JSON. Nothing here asserts a time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("gsdist._native")
pytestmark = pytest.mark.skipif(
    shutil.which("c++") is None and shutil.which("g++") is None, reason="needs a C++ compiler"
)

from benchmarks.kernels.__main__ import main  # noqa: E402
from benchmarks.kernels.check import check_device_kernels  # noqa: E402
from benchmarks.kernels.device import figures  # noqa: E402
from benchmarks.kernels.measure import Point  # noqa: E402
from gsdist.sketch.cuda_kernels import CudaKernels  # noqa: E402
from tests.emulation.launcher import EmulatedLauncher  # noqa: E402

TINY = ["--dimensions", "4096", "--rows", "3", "--columns", "256", "512", "--rounds", "2"]
RATIOS = (
    "encode_over_read",
    "select_over_read",
    "encode_vs_per_coordinate",
    "encode_vs_vectorised_loop",
    "encode_vs_torch_scatter",
)


def check_report(report: dict[str, object]) -> None:
    assert report["schema"] == 1
    for key in RATIOS:
        value = report[key]
        assert isinstance(value, float)
        assert value > 0
    environment = report["environment"]
    assert isinstance(environment, dict)
    assert {"commit", "dirty", "torch", "numpy", "cpu", "simd_level", "threads", "date"} <= set(
        environment
    )
    rows = report["results"]
    assert isinstance(rows, list)
    operations = ["encode", "estimate", "heavy_hitters", "top_k"]
    assert [row["operation"] for row in rows] == 2 * operations
    assert all(seconds > 0 for row in rows for seconds in row["seconds"].values())


def test_json_on_standard_output_stands_alone(capsys: pytest.CaptureFixture[str]) -> None:
    main([*TINY, "--json", "-"])
    captured = capsys.readouterr()
    check_report(json.loads(captured.out))
    assert "heavy_hitters" in captured.err


def test_json_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "kernels.json"
    main([*TINY, "--threads", "2", "--json", str(path)])
    check_report(json.loads(path.read_text()))
    assert "heavy_hitters" in capsys.readouterr().out


class Slipping(CudaKernels):
    """Choose the neighbours of what ought to be chosen."""

    def top_k(self, values: torch.Tensor, k: int) -> torch.Tensor:
        return super().top_k(values, k) + 1


def test_a_gpu_is_checked_before_it_is_timed() -> None:
    check_device_kernels(CudaKernels(EmulatedLauncher()), torch.device("cpu"), 3, 512)
    with pytest.raises(SystemExit, match="top_k differs from the reference at rows=3"):
        check_device_kernels(Slipping(EmulatedLauncher()), torch.device("cpu"), 3, 512)


@pytest.mark.parametrize(
    ("rate", "roofline"),
    [
        (2.5e12, 2.0),  # five rows of a gigabyte
        (1e13, 0.5),  # reading is slower than adding: half of a copy
    ],
)
def test_roofline_of_a_gpu(rate: float, roofline: float) -> None:
    point = Point(dimension=250_000_000, rows=5, columns=64, k=1)
    times = {"encode": 4.0, "encode_ordered": 12.0, "heavy_hitters": 8.0, "top_k": 1.0}
    times |= {"compensate": 3.0, "torch_index_add": 60.0}
    found = figures(point, 1.0, rate, times)
    assert found["copy_gigabytes_per_second"] == pytest.approx(2000)
    assert found["roofline_ms"] == pytest.approx(roofline)
    assert found["encode_of_roofline"] == pytest.approx(roofline / 4)
    assert found["select_of_roofline"] == pytest.approx(roofline / 8)
    assert found["encode_vs_torch"] == 15
    assert found["top_k_of_read"] == pytest.approx(0.5)
    assert found["compensate_of_copy"] == pytest.approx(0.5)
