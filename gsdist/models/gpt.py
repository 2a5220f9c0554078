"""Build a decoder-only transformer over bytes.

Source: Radford et al., Language Models are Unsupervised Multitask Learners, 2019 (GPT-2): layers
normalise their input, positions are learned, the output shares the embedding's weights. Without
biases, as is usual since.
"""

import difflib
import math
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsdist.errors import ConfigError

__all__ = ["GPT_PRESETS", "VOCABULARY", "Gpt", "GptSize", "build_gpt", "check_gpt"]

VOCABULARY = 256
"""Tokens are bytes."""
_WEIGHT_STD = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class GptSize:
    """Give the dimensions of a GPT."""

    layers: int
    """Transformer blocks."""
    width: int
    """Length of the vector that stands for one byte."""
    heads: int
    """Attention heads, a divisor of the width."""

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            ConfigError: a number below 1, or a width that the heads do not divide.
        """
        for name in ("layers", "width", "heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} of a GPT must be at least 1, got {getattr(self, name)}")
        if self.width % self.heads:
            raise ConfigError(
                f"heads of a GPT must divide its width {self.width}, got {self.heads}"
            )


GPT_PRESETS = MappingProxyType(
    {
        "gpt-1m": GptSize(layers=5, width=128, heads=4),
        "gpt-10m": GptSize(layers=8, width=320, heads=5),
        "gpt-25m": GptSize(layers=8, width=512, heads=8),
    }
)
"""Sizes by name; with a context of 256 bytes 1,049,984, 9,999,680 and 25,436,672 parameters."""


def check_gpt(name: str) -> None:
    """Refuse a name that `build_gpt` does not know.

    Raises:
        ConfigError: unknown name; lists the known ones.
    """
    if name not in GPT_PRESETS:
        close = difflib.get_close_matches(name, GPT_PRESETS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(
            f"unknown language model {name!r}: {hint}known are {', '.join(GPT_PRESETS)}"
        )


def build_gpt(name: str, *, context: int, dropout: float = 0.0) -> "Gpt":
    """Build a GPT of a preset size with fresh weights from torch's global generator.

    Raises:
        ConfigError: an unknown name, or a value out of range.
    """
    check_gpt(name)
    return Gpt(GPT_PRESETS[name], context=context, dropout=dropout)


class Gpt(nn.Module):
    """Predict every next byte from those before it.

    Takes bytes as int64 `(N, T)` with T at most `context`; returns logits `(N, T, 256)`, of which
    those at position t depend on positions 0 to t only.

    Args:
        size: layers, width and heads.
        context: bytes the model can look back on, its own position included.
        dropout: probability, in training, of leaving out an attention weight, or an entry of what
            enters or is added to the residual stream.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(self, size: GptSize, *, context: int, dropout: float = 0.0) -> None:
        super().__init__()
        if context < 1:
            raise ConfigError(f"context must be at least 1 byte, got {context}")
        if not 0.0 <= dropout < 1.0:
            raise ConfigError(f"dropout must be at least 0 and below 1, got {dropout}")
        self.context = context
        self.token_embedding = nn.Embedding(VOCABULARY, size.width)
        self.position_embedding = nn.Parameter(torch.empty(context, size.width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(_Block(size, dropout) for _ in range(size.layers)))
        self.norm = nn.LayerNorm(size.width, bias=False)
        self._initialise(size.layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits.

        Raises:
            ConfigError: more bytes than the context.
        """
        length = tokens.shape[1]
        if length > self.context:
            raise ConfigError(f"{length} bytes do not fit into the model's context {self.context}")
        features = self.token_embedding(tokens) + self.position_embedding[:length]
        features = self.norm(self.blocks(self.dropout(features)))
        return F.linear(features, self.token_embedding.weight)

    def _initialise(self, layers: int) -> None:
        # Two sums per block enter the residual stream; scaled down, its variance stays as it is.
        residual_std = _WEIGHT_STD / math.sqrt(2 * layers)
        nn.init.normal_(self.position_embedding, std=_WEIGHT_STD)
        nn.init.normal_(self.token_embedding.weight, std=_WEIGHT_STD)
        for block in self.blocks:
            assert isinstance(block, _Block)
            nn.init.normal_(block.attention.query_key_value.weight, std=_WEIGHT_STD)
            nn.init.normal_(block.attention.output.weight, std=residual_std)
            nn.init.normal_(block.expand.weight, std=_WEIGHT_STD)
            nn.init.normal_(block.contract.weight, std=residual_std)


class _Block(nn.Module):
    def __init__(self, size: GptSize, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(size.width, bias=False)
        self.attention = _CausalAttention(size, dropout)
        self.norm2 = nn.LayerNorm(size.width, bias=False)
        self.expand = nn.Linear(size.width, 4 * size.width, bias=False)
        self.contract = nn.Linear(4 * size.width, size.width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        features = features + self.dropout(self.attention(self.norm1(features)))
        inner = F.gelu(self.expand(self.norm2(features)))
        result: Tensor = features + self.dropout(self.contract(inner))
        return result


class _CausalAttention(nn.Module):
    def __init__(self, size: GptSize, dropout: float) -> None:
        super().__init__()
        self.heads = size.heads
        self.dropout = dropout
        self.query_key_value = nn.Linear(size.width, 3 * size.width, bias=False)
        self.output = nn.Linear(size.width, size.width, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        per_head = self.query_key_value(features).unflatten(-1, (3, self.heads, -1))
        # (N, T, 3, heads, head width) -> three of (N, heads, T, head width)
        query, key, value = per_head.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=True,
        )
        result: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return result
