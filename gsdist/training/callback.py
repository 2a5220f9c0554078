"""Let something act on the model between epochs, whatever the workload and the exchange method."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from gsdist.workloads import LayoutChange

__all__ = ["Callback"]


class Callback:
    """Act at the ends of epochs; this one does nothing.

    All methods are called on every rank and must leave the same on every rank. The model is the one the
    workload built, or the last smaller one, never its DDP wrapper; buffers are equal on all ranks.
    """

    active = False
    """Whether there is anything to be called for."""

    def begin(self, model: nn.Module) -> None:
        """Get to know the model, fresh from the workload; may change its parameters."""

    def train_begins(self) -> None:
        """Act before the first step of a run that begins afresh."""

    def epoch_ended(self, epoch: int) -> LayoutChange | None:
        """Act after epoch `epoch`, counted from 0, or after the run's last step if that is earlier.

        Change parameters in place, or return a smaller model that takes over.
        """
        return None

    def coordinate_mask(self) -> Mapping[str, Tensor] | None:
        """Return which coordinates are trained, as of `Workload.coordinate_mask`.

        Asked whenever the callback has acted.
        """
        return None

    def replicated_loss(self) -> Tensor | None:
        """Return a scalar that depends on parameters only, as of `Workload.replicated_loss`."""
        return None

    def measures(self) -> Mapping[str, float]:
        """Return what is recorded with every evaluation."""
        return {}

    def files(self) -> Mapping[str, str]:
        """Return what the run directory holds at the end: text by file name."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return state that checkpoints keep; equal on all ranks."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> LayoutChange | None:
        """Restore it, and return the model that had taken over when it was saved, with any values."""
        return None
