"""On a GPU: what benchmarks check before they time anything holds there."""

import json
from pathlib import Path

import torch

from benchmarks.kernels.check import check_device_kernels
from benchmarks.simulated_link.__main__ import main
from gsdist.sketch.cuda_launch import cuda_kernels


def test_kernels_agree_with_the_reference() -> None:
    check_device_kernels(cuda_kernels(), torch.device("cuda"), 5, 2**14)


def test_steps_over_a_simulated_link(tmp_path: Path) -> None:
    """NCCL with one worker, the exchange's own stream, and a wire that spins in it."""
    target = tmp_path / "simulated.json"
    options = ["--device", "cuda", "--models", "mlp", "--rounds", "3", "--bandwidths", "100Mbit"]
    options += ["--methods", "dense-fp32", "dense-bf16", "gs-sgd-paper", "random-k", "power-sgd"]
    assert main([*options, "--json", str(target)]) == 0
    cells = json.loads(target.read_text())["simulated_cells"]
    assert all(cell["wire_seconds"] > 0 for cell in cells)
