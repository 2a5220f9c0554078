"""Capture real gradients of real models, one per worker, and keep them under build/gradients.

A model is trained densely for a few steps by plain SGD; then each worker's gradient of a batch of its
own is taken at the same weights, once per capture, with one more training step between two captures.
All models come from gsdist's workloads: ResNet-20 and VGG-16 on CIFAR-10, a byte-level GPT on
Shakespeare, a larger one on the source of Python's library. ResNet-50 is torchvision's ImageNet network with
its 1000 outputs, so that it has its 25.6 million parameters, but it sees CIFAR-10's images enlarged to
64x64: its shapes and sizes are those of ImageNet training, the statistics of its gradients are not. The tiny
`mlp` on digits is there to try the machinery. It and the larger GPT need no download.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import default_collate

from benchmarks.environment import ROOT
from gsdist.models import build_model
from gsdist.models.gpt import GPT_PRESETS
from gsdist.workloads import (
    ClassificationConfig,
    ClassificationWorkload,
    LanguageConfig,
    LanguageWorkload,
    Workload,
)

__all__ = [
    "CAPTURES",
    "SOURCES",
    "CapturedGradients",
    "Source",
    "capture",
    "draw_batch",
    "load",
    "network_of",
    "workload_of",
]

FOLDER = ROOT / "build" / "gradients"
CAPTURES = 2
"""Gradients of each worker, from consecutive steps."""
_META = "meta.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Say how a model's gradients come about."""

    model: str
    """Network of gsdist.models."""
    data: str
    """Data set of gsdist.data, already fetched."""
    batch: int
    """Examples per worker and step."""
    enlarged_to: int | None = None
    """Height and width to which images are enlarged; None: as they are."""
    classes: int | None = None
    """Outputs of the network where they are more than the data's classes."""
    training_steps: int = 4
    """SGD steps before the first capture."""
    learning_rate: float = 0.05
    """Of these steps."""


SOURCES = {
    source.model: source
    for source in (
        Source(model="resnet20", data="cifar10", batch=32),
        Source(model="vgg16-cifar", data="cifar10", batch=16),
        Source(model="resnet50", data="cifar10", batch=8, enlarged_to=64, classes=1000),
        Source(model="gpt-1m", data="shakespeare", batch=4),
        Source(model="gpt-25m", data="python-source", batch=4),
        Source(model="mlp", data="digits", batch=32),
    )
}
"""What can be captured, by the model's name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CapturedGradients:
    """Point at captured gradients: flat float32 vectors in the order of `named_parameters`."""

    model: str
    shapes: dict[str, tuple[int, ...]]
    """Shape of each parameter, in order."""
    folder: str

    @property
    def dimension(self) -> int:
        """Return the number of parameters."""
        return sum(torch.Size(shape).numel() for shape in self.shapes.values())

    def of(self, worker: int) -> list[Tensor]:
        """Return a worker's gradients, one per capture, mapped read-only from the disk."""
        arrays = (
            np.load(_file(Path(self.folder), worker, step), mmap_mode="c")
            for step in range(CAPTURES)
        )
        return [torch.from_numpy(array) for array in arrays]


def load(model: str, workers: int) -> CapturedGradients:
    """Return the gradients of `workers` workers; capture those that are missing or damaged."""
    folder = FOLDER / model
    meta = _read_meta(folder)
    if meta.get("source") != asdict(SOURCES[model]):
        meta = {"source": asdict(SOURCES[model]), "sha256": {}}
    missing = [w for w in range(workers) if not _intact(folder, w, meta["sha256"])]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        meta |= {"torch": torch.__version__}
        for worker, step, gradient, shapes in capture(SOURCES[model], missing):
            path = _file(folder, worker, step)
            unfinished = path.with_suffix(".tmp.npy")
            np.save(unfinished, gradient.numpy())
            unfinished.replace(path)
            meta["sha256"][path.name] = _sha256(path)
            meta["shapes"] = shapes
        (folder / _META).write_text(json.dumps(meta, indent=2) + "\n")
    shapes = {name: tuple(shape) for name, shape in meta["shapes"].items()}
    return CapturedGradients(model=model, shapes=shapes, folder=str(folder))


def capture(
    source: Source, workers: list[int]
) -> Iterator[tuple[int, int, Tensor, dict[str, list[int]]]]:
    """Train and yield (worker, capture, flat gradient, shapes by parameter name).

    A worker's gradient does not depend on which other workers are captured.
    """
    torch.manual_seed(0)
    workload = workload_of(source)
    model = network_of(source, workload)
    shapes = {name: list(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(model.parameters(), lr=source.learning_rate)
    for step in range(-source.training_steps, CAPTURES):
        if step >= 0:
            for worker in workers:
                _backward(source, workload, model, seed=1000 * (step + 1) + worker)
                yield worker, step, _flat_gradient(model), shapes
        _backward(source, workload, model, seed=10**6 + step)
        optimizer.step()


def workload_of(source: Source) -> Workload:
    """Return the workload whose data and loss a source uses."""
    if source.model in GPT_PRESETS:
        return LanguageWorkload(LanguageConfig(model=source.model, data=source.data))
    return ClassificationWorkload(ClassificationConfig(model=source.model, data=source.data))


def network_of(source: Source, workload: Workload) -> nn.Module:
    """Build a source's network with fresh weights from torch's global generator."""
    if source.classes is None:
        return workload.build_model()
    return build_model(source.model, num_classes=source.classes)


def draw_batch(source: Source, workload: Workload, *, seed: int, size: int | None = None) -> Any:
    """Draw a random batch, prepared for training; `size` examples if not the source's own number."""
    generator = torch.Generator().manual_seed(seed)
    dataset: Any = workload.training_dataset()
    size = source.batch if size is None else size
    chosen = torch.randint(len(dataset), (size,), generator=generator).tolist()
    batch = default_collate([dataset[index] for index in chosen])
    batch = workload.prepare_batch(batch, training=True, generator=generator)
    if source.enlarged_to is not None:
        images, labels = batch
        batch = F.interpolate(images, source.enlarged_to, mode="bilinear"), labels
    return batch


def _backward(source: Source, workload: Workload, model: nn.Module, *, seed: int) -> None:
    """Leave the gradient of one random batch in the model."""
    model.zero_grad(set_to_none=True)
    workload.loss(model, draw_batch(source, workload, seed=seed)).total.backward()


def _flat_gradient(model: nn.Module) -> Tensor:
    parameters = (p for p in model.parameters() if p.requires_grad)
    return torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters]
    )


def _file(folder: Path, worker: int, step: int) -> Path:
    return folder / f"worker{worker}-step{step}.npy"


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / _META
    return json.loads(path.read_text()) if path.exists() else {}


def _intact(folder: Path, worker: int, sums: dict[str, str]) -> bool:
    paths = [_file(folder, worker, step) for step in range(CAPTURES)]
    return all(path.exists() and sums.get(path.name) == _sha256(path) for path in paths)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
