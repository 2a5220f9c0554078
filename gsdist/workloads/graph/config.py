"""Hold the settings that node classification and link prediction share."""

from dataclasses import dataclass
from typing import Literal

from gsdist.data import check_dataset_name
from gsdist.errors import ConfigError
from gsdist.workloads.graph.model import ModelShape

__all__ = ["GraphConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphConfig:
    """Choose data, model, batches and regularisers."""

    data: str = "films"
    """Graph: films, wordnet, dblp, imdb or hetero-sbm for classes; films or last-fm for links."""
    data_root: str | None = None
    """Folder that holds the data; default GSDIST_DATA, then ~/.cache/gsdist/data."""
    split_seed: int = 0
    """Chooses training, validation and test part, where the data does not come split."""
    layers: int | None = None
    """Times that views are encoded and fused; unset: as published for the data, else 1."""
    width: int = 64
    """Numbers per node in all layers (the paper's d)."""
    input_dropout: float = 0.3
    """Probability of dropping an entry of the transformed features."""
    hop_dropout: float = 0.3
    """Probability of dropping an entry of the state after each hop."""
    reconstruction: float = 0.1
    """Weight of the fusion's reconstruction loss (the paper's lambda)."""
    orthogonality: float = 100.0
    """Weight of the penalty on encoders whose columns are not orthogonal (the paper's beta)."""
    weight_penalty: float = 5e-3
    """L2 penalty on all parameters: adds so many times the parameter to its gradient."""
    exchange_regulariser: bool = False
    """Let the orthogonality penalty travel with the gradient instead of adding it after the exchange:
    only to see why not."""
    blocks: Literal["whole", "layered"] = "whole"
    """Describe the whole graph in every step, or only what reaches the nodes of the batch."""
    neighbours: int | None = None
    """layered: in-edges drawn per node and hop; unset: all."""

    def __post_init__(self) -> None:
        """Check names and ranges.

        Raises:
            ConfigError: an unknown name or a value out of range.
        """
        check_dataset_name(self.data, "graph")
        self.shape()
        for name in ("orthogonality", "weight_penalty"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.reconstruction <= 0:
            # Decoders receive a gradient from nothing else.
            raise ConfigError(f"reconstruction must be positive, got {self.reconstruction}")
        if self.blocks not in ("whole", "layered"):
            raise ConfigError(f"blocks must be 'whole' or 'layered', got {self.blocks!r}")
        if self.neighbours is not None and (self.neighbours < 1 or self.blocks == "whole"):
            raise ConfigError(
                f"neighbours={self.neighbours} needs blocks='layered' and must be at least 1"
            )
        if self.blocks == "layered" and self.layers not in (None, 1):
            raise ConfigError(f"layers={self.layers} needs blocks='whole'")

    def shape(self) -> ModelShape:
        """Return what these settings say of the model's shape."""
        return ModelShape(
            width=self.width,
            layers=1 if self.layers is None else self.layers,
            input_dropout=self.input_dropout,
            hop_dropout=self.hop_dropout,
        )
