"""Name the trainings of the comparison."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from benchmarks.convergence.methods import Optimizer
from gsdist.workloads import (
    ClassificationConfig,
    ClassificationWorkload,
    LanguageConfig,
    LanguageWorkload,
    Workload,
)

__all__ = ["PRESETS", "Preset", "Training", "evaluate", "open_workload", "training_batches"]

_EVALUATION_BATCH = 250


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """Give a training its network and data, and the settings that suit its dense run."""

    build: Callable[[int | None], Workload]
    """Make the workload, on so many training items or all; normalisation ignores the batch."""
    global_batch: int
    learning_rate: float
    optimizer: Optimizer = "sgd"
    lr_warmup_steps: int = 0
    """Steps over which the learning rate rises; the GPT learns nothing for long without."""
    clip_norm: float | None = None
    vectorised_up_to: int = 2
    """Largest local batch at which one pass for many workers beats a loop over them (measured)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """Say what is trained; the same for all methods that are compared.

    SGD with momentum and without weight decay, or AdamW; the learning rate falls to zero along a cosine.
    """

    workload: str = "resnet8"
    """A key of PRESETS."""
    steps: int = 400
    global_batch: int = 128
    """Items per step of all workers together, whatever their number."""
    learning_rate: float = 0.1
    momentum: float = 0.9
    """Of SGD; AdamW's decay of the averaged gradient."""
    clip_norm: float | None = None
    """Clip the average to this norm, after the exchange."""
    train_subset: int | None = None
    """Train on the first so many items; None: all."""
    evaluation_items: int | None = None
    """Evaluate on the first so many items; None: all."""
    energy_every: int = 20
    """Steps from one sample of the energy to the next."""


def _cifar10(train_subset: int | None) -> Workload:
    # A run of 400 steps sees each image about once: nothing is gained by augmenting them.
    return ClassificationWorkload(
        ClassificationConfig(
            model="resnet8", norm="group", augment=False, train_subset=train_subset
        )
    )


def _cifar10_resnet20(train_subset: int | None) -> Workload:
    return ClassificationWorkload(
        ClassificationConfig(model="resnet20", norm="group", train_subset=train_subset)
    )


def _cifar10_vgg16(train_subset: int | None) -> Workload:
    return ClassificationWorkload(
        ClassificationConfig(
            model="vgg16-cifar", norm="group", augment=False, train_subset=train_subset
        )
    )


def _digits(train_subset: int | None) -> Workload:
    return ClassificationWorkload(
        ClassificationConfig(model="mlp", data="digits", augment=False, train_subset=train_subset)
    )


def _shakespeare(train_subset: int | None) -> Workload:
    if train_subset is not None:
        raise ValueError(f"gpt-1m trains on the whole text; train_subset is {train_subset}")
    return LanguageWorkload(
        LanguageConfig(model="gpt-1m", data="shakespeare", context=64, evaluation_windows=1000)
    )


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "resnet8": Preset(build=_cifar10, global_batch=128, learning_rate=0.1),
        "gpt-1m": Preset(
            build=_shakespeare,
            global_batch=64,
            learning_rate=2e-3,
            optimizer="adamw",
            lr_warmup_steps=20,
            clip_norm=1.0,
            vectorised_up_to=0,
        ),
        "resnet20": Preset(
            build=_cifar10_resnet20, global_batch=128, learning_rate=0.1, vectorised_up_to=0
        ),
        "vgg16-cifar": Preset(
            build=_cifar10_vgg16, global_batch=64, learning_rate=0.02, vectorised_up_to=0
        ),
        "mlp": Preset(build=_digits, global_batch=64, learning_rate=0.05),
    }
)
"""Trainings by name: ResNet-8, ResNet-20 (for some epochs, on augmented images) and VGG-16 (whose matrices
are large) on CIFAR-10, a GPT on Shakespeare, and a tiny one for tests (digits)."""


@lru_cache(maxsize=1)
def open_workload(training: Training) -> Workload:
    """Return the workload of a training; the last one is kept, as its data is slow to read."""
    return PRESETS[training.workload].build(training.train_subset)


def training_batches(
    training: Training, workload: Workload, seed: int
) -> Iterator[tuple[Tensor, ...]]:
    """Yield prepared global batches without end, in an order that depends on the seed alone."""
    order = torch.Generator().manual_seed(seed)
    draws = torch.Generator().manual_seed(seed)
    dataset = workload.training_dataset()
    while True:
        permutation = torch.randperm(len(dataset), generator=order).tolist()  # type: ignore[arg-type]
        for start in range(0, len(permutation) - training.global_batch + 1, training.global_batch):
            chosen = permutation[start : start + training.global_batch]
            batch = default_collate([dataset[index] for index in chosen])
            yield workload.prepare_batch(batch, training=True, generator=draws)


def evaluate(training: Training, workload: Workload, model: torch.nn.Module) -> dict[str, float]:
    """Return the means of the workload's metrics over the evaluation data."""
    dataset = workload.evaluation_dataset()
    if training.evaluation_items is not None:
        count = min(training.evaluation_items, len(dataset))  # type: ignore[arg-type]
        dataset = torch.utils.data.Subset(dataset, range(count))
    prepared = (
        workload.prepare_batch(batch, training=False)
        for batch in DataLoader(dataset, batch_size=_EVALUATION_BATCH)
    )
    sums = workload.evaluate(model, prepared)
    return {metric: total / count for metric, (total, count) in sums.items()}
