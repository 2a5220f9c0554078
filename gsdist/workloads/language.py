"""Train a byte-level language model by cross-entropy and measure its loss on held-out text."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsdist.data import TextWindows, check_dataset_name, load_text
from gsdist.errors import ConfigError
from gsdist.models.gpt import build_gpt, check_gpt
from gsdist.workloads.contract import LossParts, Workload

__all__ = ["LanguageConfig", "LanguageWorkload"]

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageConfig:
    """Choose network and text; tokens are bytes, so there is no tokenizer."""

    model: str = "gpt-1m"
    """Network: gpt-1m, gpt-10m or gpt-25m."""
    data: str = "shakespeare"
    """Text: shakespeare, python-source (nothing to download) or text-folder."""
    data_root: str | None = None
    """Folder that holds the data, of text-folder the text itself; default GSDIST_DATA, then
    ~/.cache/gsdist/data."""
    files: str | None = None
    """text-folder: pattern that the names of files match, in subfolders too; default *.txt."""
    context: int = 256
    """Bytes the model looks back on; also the length of training and evaluation windows."""
    dropout: float = 0.0
    """Probability of leaving out an attention weight or an entry of the residual stream."""
    evaluation_windows: int | None = None
    """Evaluate on the first so many windows only; default all."""

    def __post_init__(self) -> None:
        """Check names and ranges.

        Raises:
            ConfigError: an unknown name or a value out of range.
        """
        check_gpt(self.model)
        check_dataset_name(self.data, kind="text")
        if self.files is not None and self.data != "text-folder":
            raise ConfigError(f"files={self.files!r} is for data='text-folder', not {self.data!r}")
        if self.context < 1:
            raise ConfigError(f"context must be at least 1 byte, got {self.context}")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        if self.evaluation_windows is not None and self.evaluation_windows < 1:
            raise ConfigError(
                f"evaluation_windows must be at least 1 when given, got {self.evaluation_windows}"
            )


class LanguageWorkload(Workload):
    """Predict bytes; a prepared batch is `(inputs, targets)`, both int64 `(N, context)`.

    Targets are the inputs one byte further on. Each training item is a block of two contexts, from
    which `prepare_batch` cuts a window that begins anywhere in its first half: an epoch takes one
    window from every block, and every beginning is equally likely. The text is opened when first
    needed.

    Args:
        config: network and text.
    """

    name = "language"
    primary_metric = "accuracy"

    def __init__(self, config: LanguageConfig) -> None:
        self.config = config

    def build_model(self) -> nn.Module:
        """Build the network."""
        config = self.config
        return build_gpt(config.model, context=config.context, dropout=config.dropout)

    def training_dataset(self) -> TextWindows:
        """Return blocks of two contexts, one context apart, of the first 95 % of the text."""
        return self._training_data

    def evaluation_dataset(self) -> TextWindows:
        """Return windows of the last 5 % of the text, which predict no byte twice."""
        return self._evaluation_data

    def prepare_batch(
        self, batch: Tensor, *, training: bool, generator: torch.Generator | None = None
    ) -> Batch:
        """Cut a random window out of each training block, and split windows in inputs and targets.

        Training draws the beginnings as one draw of shape `(N,)`.
        """
        windows = batch
        if training:
            context = self.config.context
            device = torch.device("cpu") if generator is None else generator.device
            starts = torch.randint(context, (len(batch),), generator=generator, device=device)
            positions = torch.arange(context + 1, device=batch.device)
            windows = batch.gather(1, starts.to(batch.device)[:, None] + positions)
        windows = windows.long()
        return windows[:, :-1], windows[:, 1:]

    def loss(self, model: nn.Module, batch: Batch) -> LossParts:
        """Compute the mean cross-entropy per byte, in nats."""
        return LossParts({"cross_entropy": _cross_entropy(model(batch[0]), batch[1], "mean")})

    def evaluate(
        self, model: nn.Module, batches: Iterable[Batch]
    ) -> Mapping[str, tuple[float, float]]:
        """Sum up over bytes: "loss" in nats, "bits_per_byte", and "accuracy", hits of the best guess.

        "accuracy" is the primary metric because there higher is better.
        """
        was_training = model.training
        model.eval()
        bytes_seen, hits, loss_sum = 0, 0.0, 0.0
        totals: list[Tensor] = []
        with torch.no_grad():
            for inputs, targets in batches:
                logits = model(inputs)
                bytes_seen += targets.numel()
                loss = _cross_entropy(logits, targets, "sum")
                totals.append(torch.stack([(logits.argmax(2) == targets).sum(), loss]).double())
        model.train(was_training)
        if totals:
            # One transfer from the device for all batches.
            hits, loss_sum = torch.stack(totals).sum(0).tolist()
        count = float(bytes_seen)
        return {
            "accuracy": (hits, count),
            "loss": (loss_sum, count),
            "bits_per_byte": (loss_sum / math.log(2), count),
        }

    @cached_property
    def _training_data(self) -> TextWindows:
        context = self.config.context
        return TextWindows(self._text("train"), stride=context, length=2 * context)

    @cached_property
    def _evaluation_data(self) -> TextWindows:
        context, windows = self.config.context, self.config.evaluation_windows
        text = self._text("test")
        if windows is not None:
            text = text[: windows * context + 1]
        return TextWindows(text, stride=context, length=context + 1)

    def _text(self, split: Literal["train", "test"]) -> Tensor:
        config = self.config
        return load_text(config.data, split, config.data_root, files=config.files)


def _cross_entropy(logits: Tensor, targets: Tensor, reduction: str) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction=reduction)
