"""Give every trained parameter a fixed place in flat vectors, independent of DDP's buckets."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gsdist.errors import ConfigError, UnsupportedSetup
from gsdist.sketch import BLOCK

__all__ = ["FlatLayout", "Segment"]

_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """Place one parameter in the compressed or in the dense flat vector."""

    name: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    """Strides of the parameter in memory order, so that channels-last weights keep theirs."""
    dtype: str
    offset: int
    """First element in its flat vector; a multiple of the sketch block when `compressed`."""
    numel: int
    compressed: bool
    """True: in the compressed vector. False: in the dense vector, which always travels whole."""

    @property
    def stop(self) -> int:
        """Return the element after the last."""
        return self.offset + self.numel

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Return the shape of this parameter as a matrix: first dimension by all others."""
        return self.shape[0], self.numel // self.shape[0]

    def matrix_view(self, vector: Tensor) -> Tensor:
        """View this parameter's elements of a flat vector as a matrix of `matrix_shape`, in memory order."""
        return self.flat_view(vector).view(self.matrix_shape)

    def flat_view(self, vector: Tensor) -> Tensor:
        """View this parameter's elements of a flat vector as a 1-D tensor in memory order."""
        return vector[self.offset : self.stop]

    def shaped_view(self, vector: Tensor) -> Tensor:
        """View this parameter's elements of a flat vector in the parameter's shape."""
        return self.flat_view(vector).as_strided(
            self.shape, self.stride, vector.storage_offset() + self.offset
        )


class FlatLayout:
    """Map parameters to positions in one compressed and one dense flat vector.

    Parameters are placed in the order of `named_parameters`, so the layout is a function of the model
    alone: state keyed by it survives bucket rebuilds and restarts.
    """

    def __init__(self, segments: Iterable[Segment], device: torch.device = _CPU) -> None:
        self.segments = tuple(segments)
        self.device = device
        """Where the parameters are, and with them all that a reducer keeps."""
        self.compressed = tuple(segment for segment in self.segments if segment.compressed)
        self.dense = tuple(segment for segment in self.segments if not segment.compressed)
        self.compressed_size = _round_up(max((s.stop for s in self.compressed), default=0))
        """Length of the compressed vector, padding included."""
        self.dense_size = max((s.stop for s in self.dense), default=0)
        self.compressed_numel = sum(segment.numel for segment in self.compressed)
        """Number of parameters in the compressed vector, padding not counted."""
        self.numel = self.compressed_numel + self.dense_size

    @classmethod
    def from_parameters(
        cls,
        named_parameters: Iterable[tuple[str, Tensor]],
        is_dense: Callable[[str, Tensor], bool],
    ) -> "FlatLayout":
        """Lay out all parameters that require a gradient.

        `is_dense(name, parameter)` decides which of them travel whole.

        Raises:
            ConfigError: no parameter requires a gradient.
            UnsupportedSetup: a parameter is complex, sparse or not of a floating-point type, or two are on
                different devices.
        """
        ends = {True: 0, False: 0}
        segments = []
        devices: dict[torch.device, str] = {}
        for name, parameter in named_parameters:
            if not parameter.requires_grad:
                continue
            _require_exchangeable(name, parameter)
            devices.setdefault(parameter.device, name)
            compressed = not is_dense(name, parameter)
            offset = _round_up(ends[True]) if compressed else ends[False]
            ends[compressed] = offset + parameter.numel()
            segments.append(
                Segment(
                    name=name,
                    shape=tuple(parameter.shape),
                    stride=_memory_order_stride(parameter),
                    dtype=str(parameter.dtype),
                    offset=offset,
                    numel=parameter.numel(),
                    compressed=compressed,
                )
            )
        if not any(segment.numel for segment in segments):
            raise ConfigError(
                "the model has no trainable parameters (it is empty or frozen); "
                "leave it out of the exchange or set requires_grad on what should be trained"
            )
        _require_one(devices)
        return cls(segments, next(iter(devices)))

    def __iter__(self) -> Iterator[Segment]:
        return iter(self.segments)

    def vector_of(self, segment: Segment, *, compressed: Tensor, dense: Tensor) -> Tensor:
        """Choose which of two flat vectors holds a segment."""
        return compressed if segment.compressed else dense

    def unflatten(self, *, compressed: Tensor, dense: Tensor | None) -> dict[str, Tensor]:
        """Copy flat vectors out into tensors shaped like the parameters, keyed by name.

        With `dense=None` only the compressed parameters are returned.
        """
        segments = self.compressed if dense is None else self.segments
        empty = compressed if dense is None else dense
        return {
            segment.name: segment.shaped_view(
                self.vector_of(segment, compressed=compressed, dense=empty)
            ).clone()
            for segment in segments
        }

    def flatten_into(
        self,
        tensors: Mapping[str, Tensor],
        *,
        compressed: Tensor,
        dense: Tensor | None,
        subject: str,
    ) -> None:
        """Copy named tensors into flat vectors; the inverse of `unflatten`.

        Raises:
            ConfigError: names or shapes are not those of this layout.
        """
        segments = self.compressed if dense is None else self.segments
        names = {segment.name for segment in segments}
        if names != set(tensors):
            raise ConfigError(
                f"the {subject} names {_differing(set(tensors), names)}; "
                "it must have exactly the entries of this model's trainable parameters"
            )
        for segment in segments:
            source = tensors[segment.name]
            if tuple(source.shape) != segment.shape:
                raise ConfigError(
                    f"the {subject} of {segment.name!r} has shape {tuple(source.shape)}, "
                    f"the parameter has {segment.shape}"
                )
        empty = compressed if dense is None else dense
        for segment in segments:
            vector = self.vector_of(segment, compressed=compressed, dense=empty)
            segment.shaped_view(vector).copy_(tensors[segment.name])

    def coordinates(self, ordinals: Tensor) -> Tensor:
        """Return the flat coordinates of compressed parameters counted without padding, int64."""
        numels = [0, *(segment.numel for segment in self.compressed)]
        firsts = torch.tensor(numels, device=self.device).cumsum(0)
        offsets = torch.tensor([s.offset for s in self.compressed], device=self.device)
        owner = torch.searchsorted(firsts, ordinals, right=True) - 1
        return offsets[owner] + ordinals - firsts[owner]

    def ranges_of(self, indices: Tensor) -> dict[str, slice]:
        """Return, by name, which of some ascending flat coordinates fall into each compressed parameter."""
        ends = [end for segment in self.compressed for end in (segment.offset, segment.stop)]
        positions = torch.searchsorted(indices, torch.tensor(ends, device=self.device)).tolist()
        return {
            segment.name: slice(positions[2 * i], positions[2 * i + 1])
            for i, segment in enumerate(self.compressed)
        }

    def fingerprint(self) -> str:
        """Return a short hash of all names, shapes, strides, dtypes and places."""
        described = [
            (s.name, s.shape, s.stride, s.dtype, s.offset, s.compressed) for s in self.segments
        ]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]


def _round_up(size: int) -> int:
    return math.ceil(size / BLOCK) * BLOCK


def _memory_order_stride(parameter: Tensor) -> tuple[int, ...]:
    # DDP's buckets keep the strides of non-overlapping dense parameters and flatten all others.
    if _is_dense_in_memory(parameter):
        return tuple(parameter.stride())
    return tuple(torch.empty(parameter.shape, device="meta").stride())


def _is_dense_in_memory(parameter: Tensor) -> bool:
    expected = 1
    for size, stride in sorted(
        ((n, s) for n, s in zip(parameter.shape, parameter.stride(), strict=True) if n != 1),
        key=lambda pair: pair[1],
    ):
        if stride != expected:
            return False
        expected *= size
    return True


def _require_exchangeable(name: str, parameter: Tensor) -> None:
    if parameter.layout != torch.strided:
        raise UnsupportedSetup(
            f"parameter {name!r} has layout {parameter.layout}; only dense (strided) parameters can be "
            "exchanged, use a dense parameter or keep it out of the wrapped model"
        )
    if not parameter.is_floating_point():
        raise UnsupportedSetup(
            f"parameter {name!r} has dtype {parameter.dtype}; only real floating-point parameters can be "
            "exchanged, split a complex parameter with torch.view_as_real"
        )


def _require_one(devices: Mapping[torch.device, str]) -> None:
    if len(devices) > 1:
        found = ", ".join(f"{name!r} on {device}" for device, name in devices.items())
        raise UnsupportedSetup(
            f"the parameters are on several devices ({found}); exchange a model that is on one"
        )


def _differing(got: set[str], expected: set[str]) -> str:
    missing, extra = sorted(expected - got), sorted(got - expected)
    parts = []
    if missing:
        parts.append(f"not {', '.join(map(repr, missing[:5]))}{' ...' if len(missing) > 5 else ''}")
    if extra:
        parts.append(f"unknown {', '.join(map(repr, extra[:5]))}{' ...' if len(extra) > 5 else ''}")
    return " and ".join(parts)
