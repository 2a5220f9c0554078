"""Measure what a trained network is worth for finding objects: Faster R-CNN on its stages, on Pascal VOC.

Source: the protocol of Yang et al., Hierarchical Self-supervised Augmented Knowledge Distillation, 2021,
section 4.4; its detector's settings are reconstructed from torchvision's.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import Dataset

from gsdist.data import data_root
from gsdist.data.voc import VOC_CLASSES, BoxedImage, voc_images
from gsdist.errors import ConfigError, UnsupportedSetup
from gsdist.models import build_staged_model, check_staged_model
from gsdist.workloads.contract import LossParts, Workload
from gsdist.workloads.distillation.checks import require_positive
from gsdist.workloads.weights import fix_weights, load_features

__all__ = ["DetectionTransferConfig", "DetectionTransferWorkload"]

_TEST_YEAR = 2007
Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionTransferConfig:
    """Choose the network, the file of its weights, and the images its detector is trained on."""

    model: str = "resnet18"
    """Network: any that shows its stages; it was trained on colour images."""
    weights: Path | None = None
    """File of the network's weights, without branches (`gsdist compact --strip`)."""
    sha256: str | None = None
    """What the file's SHA-256 must be; unset: it is computed and becomes part of the settings."""
    data_root: str | None = None
    """Folder that holds VOCdevkit/; default GSDIST_DATA, then ~/.cache/gsdist/data."""
    train_years: tuple[int, ...] = (2007, 2012)
    """Years whose "trainval" images are trained on; the "test" images of 2007 measure."""
    image_size: int = 600
    """Pixels that the shorter side of images is scaled to."""
    max_image_size: int = 1000
    """Most pixels of the longer side."""
    augment: bool = True
    """Whether to train on random flips."""

    def __post_init__(self) -> None:
        """Check names, ranges and the file.

        Raises:
            ConfigError: an unknown name or a value out of range.
            CheckpointError: the file cannot be read or has another hash.
        """
        check_staged_model(self.model)
        require_positive(self, "image_size")
        if self.max_image_size < self.image_size:
            raise ConfigError(
                f"max_image_size must be at least image_size={self.image_size}, got {self.max_image_size}"
            )
        if not self.train_years:
            raise ConfigError("train_years is empty; name at least one, such as 2007")
        fix_weights(self, "weights", "sha256")

    @property
    def data(self) -> str:
        """Name the data set, for summaries."""
        return "voc"


class DetectionTransferWorkload(Workload):
    """Train a detector on the stages of a trained network.

    A prepared batch is `(list of float32 images (3, H, W), list of targets)`, as torchvision's detectors
    take them.

    Args:
        config: network, weights and data.

    Raises:
        ConfigError: no file of weights.
        UnsupportedSetup: torchmetrics or pycocotools is not installed.
    """

    name = "detection-transfer"
    primary_metric = "map_50"

    def __init__(self, config: DetectionTransferConfig) -> None:
        if config.weights is None:
            raise ConfigError("weights is not set: name the file of the trained network's weights")
        missing = [name for name in ("torchmetrics", "pycocotools") if find_spec(name) is None]
        if missing:
            raise UnsupportedSetup(
                f"{' and '.join(missing)} not installed, which measures detections: "
                "pip install 'gsdist[detection]'"
            )
        self.config = config
        self._weights = config.weights

    def build_model(self) -> nn.Module:
        """Build the detector on the network with its weights.

        Raises:
            CheckpointError: the file does not hold this network's weights.
        """
        from gsdist.models.detector import build_detector

        network = build_staged_model(self.config.model, num_classes=1)
        load_features(network, self._weights)
        detector: nn.Module = build_detector(
            network,
            1 + len(VOC_CLASSES),
            image_size=self.config.image_size,
            max_image_size=self.config.max_image_size,
        )
        return detector

    def training_dataset(self) -> Dataset[BoxedImage]:
        """Return the "trainval" images of all years."""
        return voc_images(data_root(self.config.data_root), self.config.train_years, "trainval")

    def evaluation_dataset(self) -> Dataset[BoxedImage]:
        """Return the "test" images of 2007."""
        return voc_images(data_root(self.config.data_root), [_TEST_YEAR], "test")

    def collate_function(self) -> Callable[[list[Any]], Any]:
        """Return what makes lists of images and of targets, as they differ in size."""
        return _lists

    def prepare_batch(
        self, batch: Batch, *, training: bool, generator: torch.Generator | None = None
    ) -> Batch:
        """Scale pixels to [0, 1]; when training, mirror at random and leave difficult objects out.

        Draws, if augmentation is wanted, one number per image.
        """
        images, targets = batch
        if training:
            flips = [0] * len(images)
            if self.config.augment:
                home = None if generator is None else generator.device
                flips = torch.randint(2, (len(images),), generator=generator, device=home).tolist()
            pairs = zip(images, targets, flips, strict=True)
            chosen = [_for_training(*pair) for pair in pairs]
            images, targets = [image for image, _ in chosen], [target for _, target in chosen]
        return [image.to(torch.float32) / 255 for image in images], targets

    def loss(self, model: nn.Module, batch: Batch) -> LossParts:
        """Compute the four losses of Faster R-CNN."""
        images, targets = batch
        return LossParts(model(images, targets))

    def evaluate(
        self, model: nn.Module, batches: Iterable[Batch]
    ) -> Mapping[str, tuple[float, float]]:
        """Measure mean average precision over classes: "map_50" at overlap 0.5, "map" as COCO does.

        Collectives: one all-gather of all ranks' detections.
        """
        was_training = model.training
        model.eval()
        own: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
        with torch.no_grad():
            for images, targets in batches:
                own += [(_to_cpu(found), _to_cpu(there)) for found, there in
                        zip(model(images), targets, strict=True)]  # fmt: skip
        model.train(was_training)
        everyone: list[Any] = [own]
        if dist.is_initialized():
            everyone = [None] * dist.get_world_size()
            dist.all_gather_object(everyone, own)
        precision = _mean_average_precision([pair for pairs in everyone for pair in pairs])
        # All ranks know the result; the first gives it, so that the sum over ranks is it.
        counts = dist.get_rank() == 0 if dist.is_initialized() else True
        return {name: (value * counts, float(counts)) for name, value in precision.items()}


def _mean_average_precision(
    pairs: list[tuple[dict[str, Tensor], dict[str, Tensor]]],
) -> dict[str, float]:
    from torchmetrics.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(sync_on_compute=False)
    metric.warn_on_many_detections = False
    for found, there in pairs:
        target = {"boxes": there["boxes"], "labels": there["labels"], "iscrowd": there["difficult"]}
        metric.update([found], [target])
    result = metric.compute()
    return {name: float(result[name]) for name in ("map_50", "map")}


def _lists(items: list[BoxedImage]) -> Batch:
    return [image for image, _ in items], [target for _, target in items]


def _for_training(
    image: Tensor, target: dict[str, Tensor], flip: int
) -> tuple[Tensor, dict[str, Tensor]]:
    kept = ~target["difficult"]
    boxes, labels = target["boxes"][kept], target["labels"][kept]
    if flip:
        left, top, right, bottom = boxes.unbind(1)
        width = image.shape[2]
        image, boxes = image.flip(-1), torch.stack([width - right, top, width - left, bottom], 1)
    return image, {"boxes": boxes, "labels": labels}


def _to_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in tensors.items()}
