"""Where a worker trains, and what is moved there."""

import pytest
import torch

from gsdist.errors import ConfigError
from gsdist.training.device import to_device, training_device


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused() -> None:
    assert training_device("auto", local_rank=3) == torch.device("cpu")
    with pytest.raises(ConfigError, match="finds no GPU; use the device cpu"):
        training_device("cuda", local_rank=0)


def test_a_worker_without_a_gpu_of_its_own_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    with pytest.raises(ConfigError, match="local rank 2 has no GPU of its own, torch finds 2"):
        training_device("auto", local_rank=2)
    assert training_device("auto", local_rank=1) == torch.device("cuda", 1)
    assert training_device("cuda", local_rank=2, shared=True) == torch.device("cuda", 0)
    assert chosen == [torch.device("cuda", 1), torch.device("cuda", 0)]


def test_everything_in_a_batch_is_moved() -> None:
    there = torch.device("meta")
    batch = [torch.zeros(2), (torch.ones(1), {"labels": torch.ones(3), "name": "x"})]
    images, (weights, rest) = to_device(batch, there)
    assert {images.device, weights.device, rest["labels"].device} == {there}
    assert rest["name"] == "x"
