"""Reducers away from the CPU: every method on an emulated GPU, where tensors of two devices do not mix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from gsdist.collectives import LocalGroup, run_together
from gsdist.errors import UnsupportedSetup
from gsdist.reducers import (
    DenseConfig,
    FlatLayout,
    GradientBucket,
    GradientSlice,
    GsSgdConfig,
    GsSgdPaperConfig,
    GTopKConfig,
    MomentumCorrection,
    OkTopKConfig,
    PowerSgdConfig,
    RandomKConfig,
    ReducerConfig,
    SketchedSgdConfig,
    TopKConfig,
    build_reducer,
)
from gsdist.sketch import cuda, cuda_arrays
from gsdist.sketch.cuda_kernels import CudaKernels
from tests.emulation.device import DEVICE, DeviceLauncher, emulated_device, to_device

WORKERS = 3
STEPS = 4
SHAPES = {"convolution": (6, 4, 3, 3), "bias": (6,), "linear": (20, 30)}
SELECTING: dict[str, Any] = {"density": 0.05, "min_numel": 32}
CONFIGS: dict[str, ReducerConfig] = {
    "dense": DenseConfig(),
    "dense, deterministic, bf16": DenseConfig(wire_dtype="bfloat16", deterministic=True),
    "gs-sgd": GsSgdConfig(compression=3, min_numel=32, max_directions=4, refresh_interval=2),
    "gs-sgd, whole sides": GsSgdConfig(
        compression=3, min_numel=32, max_directions=8, one_sided_above=100, refresh_interval=2
    ),
    "gs-sgd-paper": GsSgdPaperConfig(**SELECTING, wire_dtype="float16"),
    "gs-sgd-paper, whole, momentum": GsSgdPaperConfig(
        **SELECTING, preselect_factor=0.0, momentum="local", clip_norm=1.0
    ),
    "top-k": TopKConfig(**SELECTING, warmup_steps=1),
    "proposals": TopKConfig(**SELECTING, exchange="proposals", momentum="local"),
    "g-top-k": GTopKConfig(**SELECTING),
    "ok-top-k": OkTopKConfig(**SELECTING),
    "sketched-sgd": SketchedSgdConfig(**SELECTING),
    "random-k": RandomKConfig(**SELECTING),
    "power-sgd": PowerSgdConfig(min_numel=32, rank=2, wire_dtype="float16"),
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU whose kernels run in the emulation, adding in the CPU's order."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    monkeypatch.setattr(cuda_arrays, "_DEVICE", DEVICE.type)
    monkeypatch.setattr(cuda, "cuda_kernels", lambda: CudaKernels(DeviceLauncher()))
    yield
    torch.use_deterministic_algorithms(before)


def exchanged(config: ReducerConfig, *, on_gpu: bool) -> list[Tensor]:
    """Return what rank 0 holds after every step, masked at the end, and its residuals."""
    groups = LocalGroup.create(WORKERS, timeout=60)
    place = to_device if on_gpu else Tensor.clone

    def work(group: LocalGroup) -> list[Tensor]:
        context: AbstractContextManager[None] = emulated_device() if on_gpu else nullcontext()
        with context:
            return run_steps(group)

    def run_steps(group: LocalGroup) -> list[Tensor]:
        named = {name: place(torch.zeros(shape)).requires_grad_() for name, shape in SHAPES.items()}
        local = getattr(config, "momentum", "post") == "local"
        momentum = MomentumCorrection(factor=0.9, nesterov=True) if local else None
        layout, reducer = build_reducer(config, named, group, momentum=momentum)
        generator = torch.Generator().manual_seed(group.rank())
        seen = []
        for step in range(STEPS):
            if step == STEPS - 1:
                kept = torch.rand(SHAPES["linear"], generator=torch.Generator().manual_seed(9)) > 0.2
                reducer.set_mask({"linear": place(kept)})
            gradient = torch.randn(layout.numel, generator=generator)
            bucket = as_bucket(place(gradient), layout)
            reducer.push(bucket)
            reducer.finish()
            seen.append(bucket.buffer.cpu().clone())
        state = reducer.state_dict()
        reducer.load_state_dict(state)
        residuals = reducer.state_for_new_layout().get("residual", {})
        return seen + [residual.cpu().clone() for residual in residuals.values()]

    return run_together(groups, work)[0]


def as_bucket(buffer: Tensor, layout: FlatLayout) -> GradientBucket:
    parts = buffer.split([segment.numel for segment in layout])
    slices = (
        GradientSlice(segment=segment, gradient=part)
        for segment, part in zip(layout, parts, strict=True)
    )
    return GradientBucket(buffer=buffer, slices=tuple(slices))


@pytest.mark.filterwarnings("ignore:gs-SGD sends")
@pytest.mark.parametrize("name", CONFIGS)
def test_every_method_stays_on_its_device_and_computes_the_same(gpu: None, name: str) -> None:
    expected = exchanged(CONFIGS[name], on_gpu=False)
    found = exchanged(CONFIGS[name], on_gpu=True)
    assert len(found) == len(expected) >= STEPS
    for on_gpu, on_cpu in zip(found, expected, strict=True):
        assert torch.equal(on_gpu, on_cpu)


def test_the_emulation_refuses_what_a_gpu_refuses() -> None:
    with emulated_device(), pytest.raises(RuntimeError, match="on the same device"):
        torch.zeros(3, device=DEVICE) + torch.zeros(3)


def test_a_model_on_two_devices_is_refused() -> None:
    here = torch.zeros(3, requires_grad=True)
    there = torch.zeros(3, requires_grad=True, device="meta")
    with pytest.raises(UnsupportedSetup, match="'first' on cpu, 'second' on meta"):
        FlatLayout.from_parameters({"first": here, "second": there}.items(), lambda *_: False)
