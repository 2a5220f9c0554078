"""Follow docs/extending.md: its method exchanges what it says, its workload trains from its command line."""

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gsdist
from gsdist.cli import train
from gsdist.cli.main import main
from gsdist.reducers import factory
from tests.distributed.harness import run_ranks

PAGE = (Path(__file__).parents[3] / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r'```python title="gsdist/([\w/]+)\.py"\n(.*?)```', PAGE, re.DOTALL))


def module_of(name: str, folder: Path) -> ModuleType:
    """Save a file of the page and import it."""
    path = folder / f"{Path(name).name}.py"
    path.write_text(FILES[name])
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def cyclic_gradients(rank: int, world_size: int, folder: str) -> list[Tensor]:
    """Return what each of seven steps applies to 16 weights, k = 5, of a constant gradient per rank."""
    own = Path(folder) / str(rank)
    own.mkdir()
    module = module_of("reducers/cyclic", own)
    factory._COMPRESSED = {**factory._COMPRESSED, module.CyclicConfig: module.CyclicReducer}
    model = DistributedDataParallel(nn.Linear(16, 1, bias=False))
    config: Any = module.CyclicConfig(density=5 / 16, warmup_steps=0, min_numel=1)
    gsdist.attach(model, config)
    applied = []
    for _ in range(7):
        model.zero_grad()
        model(torch.arange(16.0)[None] * (rank + 1)).sum().backward()
        applied.append(next(model.parameters()).grad[0].clone())
    return applied


def test_the_method_averages_one_stretch_after_the_other(tmp_path: Path) -> None:
    """A coordinate gets the mean of all it has gathered since its last turn."""
    waiting, mean = torch.zeros(16), torch.arange(16.0) * 1.5
    expected = []
    for step in range(7):
        waiting += mean
        turn = torch.zeros(16, dtype=torch.bool)
        turn[[(5 * step + i) % 16 for i in range(5)]] = True
        expected.append(torch.where(turn, waiting, 0.0))
        waiting[turn] = 0.0
    for applied in run_ranks(cyclic_gradients, 2, str(tmp_path)):
        torch.testing.assert_close(torch.stack(applied), torch.stack(expected))


def test_the_places_to_edit_exist() -> None:
    root = Path(__file__).parents[3]
    for name in ("ReducerConfig", "REDUCER_CONFIGS", "_COMPRESSED"):
        assert hasattr(factory, name)
    assert "\nMETHODS" in (root / "tests/distributed/test_reducers.py").read_text()
    for named in re.findall(r"`((?:gsdist|tests)/[\w/]+\.py)`", PAGE):
        assert (root / named).exists(), named


def test_the_workload_trains_from_its_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = module_of("workloads/diabetes", tmp_path)
    workload = (module.DiabetesConfig, module.DiabetesWorkload)
    monkeypatch.setattr(train, "_WORKLOADS", {**train._WORKLOADS, "diabetes": workload})
    (command,) = re.findall(r"^gsdist (train diabetes .*)$", PAGE, re.MULTILINE)
    options = ["--run-dir", str(tmp_path / "run"), "--json", "-", "--no-progress"]
    assert main([*shlex.split(command), *options]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (
        printed["score"] > 0.3
    )  # 0 is the mean of all, an ordinary least-squares fit has about 0.5
