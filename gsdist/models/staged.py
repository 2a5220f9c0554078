"""Define the networks that show what their stages compute, and that can repeat them."""

import abc

from torch import Tensor, nn

__all__ = ["StagedNetwork"]


class StagedNetwork(nn.Module, abc.ABC):
    """Classify images by a stem, stages, a tail, the mean over positions and a linear classifier.

    Takes float images `(N, in_channels, H, W)`, returns logits `(N, num_classes)`. A subclass sets the
    four modules; branches and peers (`gsdist.models.branches`, `gsdist.models.peers`) need no more.
    """

    stem: nn.Module
    """What comes before the first stage."""
    stages: nn.Sequential
    """The stages; the output of each is a tap."""
    tail: nn.Module
    """What comes between the last stage and the mean over positions."""
    classifier: nn.Linear
    """From the mean to logits."""

    @abc.abstractmethod
    def make_stage(self, number: int, *, keep_shape: bool = False) -> nn.Module:
        """Build stage `number` (from 0) with fresh weights, as it stands in the network.

        With `keep_shape` it takes what the stage puts out and does not halve the resolution.
        """

    def make_tail(self) -> nn.Module:
        """Build the tail with fresh weights: nothing, as where the last stage ends in an activation."""
        return nn.Identity()

    def taps(self, images: Tensor) -> list[Tensor]:
        """Return the output of every stage, `(N, C, H, W)` each."""
        features = self.stem(images)
        outputs: list[Tensor] = []
        for stage in self.stages:
            features = stage(features)
            outputs.append(features)
        return outputs

    def embed(self, features: Tensor) -> Tensor:
        """Turn the last stage's output into the vectors `(N, width)` that are classified."""
        embedding: Tensor = self.tail(features).mean(dim=(2, 3))
        return embedding

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.classifier(self.embed(self.stages(self.stem(images))))
        return logits
