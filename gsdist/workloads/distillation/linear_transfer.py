"""Measure what a trained network's features are worth on other data: a linear classifier on them.

Source: the protocol of Yang et al., Hierarchical Self-supervised Augmented Knowledge Distillation, 2021,
section 4.4; there 100 epochs, rate 0.1 divided by 10 after epochs 30, 60 and 90, no weight decay.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gsdist.errors import ConfigError
from gsdist.models import StagedNetwork, build_staged_model, check_staged_model
from gsdist.workloads.classification import ClassificationConfig, ClassificationWorkload
from gsdist.workloads.weights import fix_weights, load_features

__all__ = ["LinearProbe", "LinearTransferConfig", "LinearTransferWorkload"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearTransferConfig(ClassificationConfig):
    """Choose the network, the file of its weights, and the data they are tried on."""

    weights: Path | None = None
    """File of the network's weights, without branches (`gsdist compact --strip`)."""
    sha256: str | None = None
    """What the file's SHA-256 must be; unset: it is computed and becomes part of the settings."""

    def __post_init__(self) -> None:
        """Check names, ranges and the file.

        Raises:
            ConfigError: an unknown name or a value out of range.
            CheckpointError: the file cannot be read or has another hash.
        """
        ClassificationConfig.__post_init__(self)
        check_staged_model(self.model, norm=self.norm, shortcut=self.shortcut)
        fix_weights(self, "weights", "sha256")


class LinearProbe(nn.Module):
    """Classify what a frozen network sees.

    Args:
        network: used, not copied; stays in evaluation mode, and only its classifier learns.
    """

    def __init__(self, network: StagedNetwork) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        network.classifier.requires_grad_(True)
        self.train()

    def train(self, mode: bool = True) -> "LinearProbe":
        """Switch the mode; the network stays in evaluation mode."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(N, num_classes)`."""
        with torch.no_grad():
            features = self.network.embed(self.network.taps(images)[-1])
        logits: Tensor = self.network.classifier(features)
        return logits


class LinearTransferWorkload(ClassificationWorkload):
    """Train a new classifier on the features of a frozen network.

    Args:
        config: network, weights and data.

    Raises:
        ConfigError: no file of weights.
    """

    name = "linear-transfer"
    config: LinearTransferConfig

    def __init__(self, config: LinearTransferConfig) -> None:
        super().__init__(config)
        if config.weights is None:
            raise ConfigError("weights is not set: name the file of the trained network's weights")
        self._weights = config.weights

    def build_model(self) -> LinearProbe:
        """Build the network with its weights and a classifier for this data.

        Raises:
            CheckpointError: the file does not hold this network's weights.
        """
        image_format = self.training_dataset().format
        network = build_staged_model(
            self.config.model,
            num_classes=image_format.num_classes,
            in_channels=image_format.channels,
            norm=self.config.norm,
            shortcut=self.config.shortcut,
        )
        load_features(network, self._weights)
        return LinearProbe(network)
