"""Train an image classifier by cross-entropy and measure top-1 accuracy."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsdist.data import (
    ImageDataset,
    check_dataset_name,
    few_of_each_class,
    load_dataset,
    normalize,
    random_crop,
    random_flip,
)
from gsdist.errors import ConfigError
from gsdist.models import Normalization, build_model, check_model
from gsdist.models.cifar_resnet import Shortcut
from gsdist.workloads.contract import LossParts, Workload

__all__ = ["ClassificationConfig", "ClassificationWorkload", "classification_sums"]

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassificationConfig:
    """Choose network, data and loss; the number of classes follows from the data."""

    model: str = "resnet20"
    """Network: resnet8/14/20/32/44/56/110 or wrn-D-K for small images, mlp, or any classification
    model of torchvision (resnet50, vit_b_16, ...)."""
    data: str = "cifar10"
    """Data set: cifar10, cifar100, fashion-mnist, digits, image-folder, tiny-imagenet or imagenet."""
    data_root: str | None = None
    """Folder that holds the data; default GSDIST_DATA, then ~/.cache/gsdist/data."""
    image_size: int | None = None
    """Height and width that folder images are cut to, default 224, and tiny-imagenet is scaled to, default
    64; other data has its own size."""
    train_subset: int | None = None
    """Train on this many images only; default all."""
    train_per_class: int | None = None
    """Train on this many images of each class only; default all."""
    subset_seed: int = 0
    """Chooses those of train_per_class."""
    augment: bool = True
    """Whether to train on random crops and flips, as usual for the data set."""
    label_smoothing: float = 0.0
    """Share of the target probability spread evenly over all classes, 0 to below 1."""
    norm: Normalization = "batch"
    """Batch normalisation, or group normalisation, which does not depend on the local batch."""
    shortcut: Shortcut = "projection"
    """CIFAR ResNets: how blocks that change the shape pass their input on (option B or A)."""

    def __post_init__(self) -> None:
        """Check names and ranges.

        Raises:
            ConfigError: an unknown name or a value out of range.
        """
        check_model(self.model, norm=self.norm, shortcut=self.shortcut)
        check_dataset_name(self.data)
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ConfigError(
                f"label_smoothing must be at least 0 and below 1, got {self.label_smoothing}"
            )
        for name in ("train_subset", "train_per_class", "image_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1 when given, got {value}")


class ClassificationWorkload(Workload):
    """Classify images; a prepared batch is `(float32 images (N, C, H, W), int64 labels (N,))`.

    The data is opened when first needed.

    Args:
        config: network, data and loss.
    """

    name = "classification"
    primary_metric = "accuracy"
    crops_on_device = False
    """Whether `prepare_batch` cuts folder images at random, instead of the data set when it reads them."""

    def __init__(self, config: ClassificationConfig) -> None:
        self.config = config

    def build_model(self) -> nn.Module:
        """Build the network with as many outputs as the data has classes."""
        image_format = self._training_data.format
        return build_model(
            self.config.model,
            num_classes=image_format.num_classes,
            in_channels=image_format.channels,
            image_size=image_format.image_size,
            norm=self.config.norm,
            shortcut=self.config.shortcut,
        )

    def training_dataset(self) -> ImageDataset:
        """Return the training split, or the subset of it that was asked for."""
        return self._training_data

    def evaluation_dataset(self) -> ImageDataset:
        """Return the whole test split."""
        return self._evaluation_data

    def prepare_batch(
        self, batch: Batch, *, training: bool, generator: torch.Generator | None = None
    ) -> Batch:
        """Augment uint8 images `(N, C, H, W)` when training, and normalise them to float32.

        Draws, in this order and as far as the data set wants them: crop offsets, flips.
        """
        images, labels = batch
        image_format = self._training_data.format
        if training and self.config.augment:
            if image_format.crop_padding:
                images = random_crop(images, image_format.crop_padding, generator)
            if image_format.flip:
                images = random_flip(images, generator)
        return normalize(images, image_format.mean, image_format.std), labels

    def loss(self, model: nn.Module, batch: Batch) -> LossParts:
        """Compute the mean cross-entropy of the batch."""
        images, labels = batch
        value = F.cross_entropy(model(images), labels, label_smoothing=self.config.label_smoothing)
        return LossParts({"cross_entropy": value})

    def evaluate(
        self, model: nn.Module, batches: Iterable[Batch]
    ) -> Mapping[str, tuple[float, float]]:
        """Sum up over images what `metric_sums` measures."""
        was_training = model.training
        model.eval()
        names = self.metric_names(model)
        images_seen = 0
        totals = [torch.zeros(len(names), dtype=torch.float64)]
        with torch.no_grad():
            for images, labels in batches:
                images_seen += len(labels)
                sums = self.metric_sums(model, images, labels)
                totals.append(torch.stack([sums[name].double() for name in names]))
        model.train(was_training)
        # One transfer from the device for all batches.
        result = torch.stack([total.to(totals[-1].device) for total in totals]).sum(0).tolist()
        return {
            name: (value, float(images_seen)) for name, value in zip(names, result, strict=True)
        }

    def metric_names(self, model: nn.Module) -> tuple[str, ...]:
        """List what `metric_sums` measures."""
        return ("accuracy", "loss")

    def metric_sums(self, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Count top-1 hits as "accuracy" and sum up cross-entropy without smoothing as "loss"."""
        return classification_sums(model(images), labels)

    @cached_property
    def _training_data(self) -> ImageDataset:
        config = self.config
        data = load_dataset(
            config.data,
            "train",
            config.data_root,
            subset=config.train_subset,
            image_size=config.image_size,
            random_crop=config.augment and not self.crops_on_device,
        )
        if config.train_per_class is None:
            return data
        return few_of_each_class(data, config.train_per_class, config.subset_seed)

    @cached_property
    def _evaluation_data(self) -> ImageDataset:
        config = self.config
        return load_dataset(config.data, "test", config.data_root, image_size=config.image_size)


def classification_sums(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Count top-1 hits of logits `(N, C)` as "accuracy" and sum up their cross-entropy as "loss"."""
    loss = F.cross_entropy(logits.float(), labels, reduction="sum")
    return {"accuracy": (logits.argmax(1) == labels).sum(), "loss": loss}
