"""Reducers away from the CPU: every method on an emulated GPU, where tensors of two devices do not mix."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from gsdist.collectives import LocalGroup, run_together
from gsdist.errors import UnsupportedSetup
from gsdist.reducers import FlatLayout
from gsdist.sketch import cuda, cuda_arrays
from gsdist.sketch.cuda_kernels import CudaKernels
from tests.emulation.device import DEVICE, DeviceLauncher, emulated_device, to_device
from tests.reducers_on_device import CONFIGS, STEPS, run_steps

WORKERS = 3


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU whose kernels run in the emulation, adding in the CPU's order."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    monkeypatch.setattr(cuda_arrays, "_DEVICE", DEVICE.type)
    monkeypatch.setattr(cuda, "cuda_kernels", lambda: CudaKernels(DeviceLauncher()))
    yield
    torch.use_deterministic_algorithms(before)


def on_gpu(config: object) -> list[Tensor]:
    def work(group: LocalGroup) -> list[Tensor]:
        with emulated_device():
            return run_steps(config, group, to_device)

    return run_together(LocalGroup.create(WORKERS, timeout=60), work)[0]


def on_cpu(config: object) -> list[Tensor]:
    groups = LocalGroup.create(WORKERS, timeout=60)
    return run_together(groups, lambda group: run_steps(config, group, Tensor.clone))[0]


@pytest.mark.filterwarnings("ignore:gs-SGD sends")
@pytest.mark.parametrize("name", CONFIGS)
def test_every_method_stays_on_its_device_and_computes_the_same(gpu: None, name: str) -> None:
    expected, found = on_cpu(CONFIGS[name]), on_gpu(CONFIGS[name])
    assert len(found) == len(expected) >= STEPS
    for there, here in zip(found, expected, strict=True):
        assert torch.equal(there, here)


def test_the_emulation_refuses_what_a_gpu_refuses() -> None:
    with emulated_device(), pytest.raises(RuntimeError, match="on the same device"):
        torch.zeros(3, device=DEVICE) + torch.zeros(3)


def test_a_model_on_two_devices_is_refused() -> None:
    here = torch.zeros(3, requires_grad=True)
    there = torch.zeros(3, requires_grad=True, device="meta")
    with pytest.raises(UnsupportedSetup, match="'first' on cpu, 'second' on meta"):
        FlatLayout.from_parameters({"first": here, "second": there}.items(), lambda *_: False)
