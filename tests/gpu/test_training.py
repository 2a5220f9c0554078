"""On a GPU: `gsdist train` learns there, resumes there, and agrees with the CPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gsdist.cli.main import main

DIGITS = ["train", "classification", "--model", "mlp", "--data", "digits", "--no-progress"]


def run(folder: Path, *options: str) -> dict[str, object]:
    """Train, and return the summary."""
    target = folder / "summary.json"
    arguments = [*DIGITS, "--run-dir", str(folder), "--json", str(target), *options]
    assert main(arguments) == 0
    summary: dict[str, object] = json.loads(target.read_text())
    return summary


@pytest.mark.parametrize("reducer", ["dense", "gs-sgd"])
def test_trains_as_well_as_on_the_cpu(tmp_path: Path, reducer: str) -> None:
    options = ["--reducer", reducer, "--epochs", "10", "--learning-rate", "0.05"]
    if reducer == "gs-sgd":
        options += ["--reducer.compression", "4"]
    accuracy = {
        device: run(tmp_path / device, *options, "--device", device)["metrics"]["accuracy"]  # type: ignore[index]
        for device in ("cpu", "cuda")
    }
    assert accuracy["cuda"] == pytest.approx(accuracy["cpu"], abs=0.03) and accuracy["cuda"] > 0.8


def test_resumes_with_the_same_bits(tmp_path: Path) -> None:
    options = ["--device", "cuda", "--deterministic", "--steps", "10", "--checkpoint-every", "5"]
    options += ["--reducer", "gs-sgd", "--reducer.compression", "4"]
    whole = run(tmp_path, *options)
    *_, newest = sorted((tmp_path / "checkpoints").glob("step-*"))
    shutil.rmtree(newest)
    assert run(tmp_path, *options, "--resume")["metrics"] == whole["metrics"]
