"""Know the directions in which one matrix is heavy: find them in sketches, follow them, work in them.

Pure functions and one small state; all ranks compute the same from the same merged sums.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["MatrixBasis", "Refreshed", "orthonormal", "sketch_columns"]

_CPU = torch.device("cpu")
_NEGLIGIBLE = 1e-6
"""Share of the largest eigenvalue below which a direction counts as unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refreshed:
    """Hold an exact sum restricted to a range: `range_basis @ factor`."""

    range_basis: Tensor
    """(n, rank), orthonormal columns."""
    factor: Tensor
    """(rank, m)."""


@dataclass(kw_only=True, slots=True)
class Side:
    """Hold orthonormal directions among the rows (or columns) of a matrix, heaviest first."""

    size: int
    """Number n of rows."""
    vectors: Tensor | None
    """(n, count); None: the side is whole, rows stand for themselves."""
    moment: Tensor | None
    """(count, count): decayed sum of C C^T, C being the coefficients seen; None: the side is whole."""

    @classmethod
    def unknown(cls, size: int, count: int | None, device: torch.device) -> "Side":
        """Return so many arbitrary directions; None: a side that is whole."""
        if count is None:
            return cls(size=size, vectors=None, moment=None)
        vectors = _completed(torch.empty(size, 0, device=device), count)
        return cls(size=size, vectors=vectors, moment=torch.zeros(count, count, device=device))

    @property
    def count(self) -> int:
        """Return the number of directions."""
        return self.size if self.vectors is None else self.vectors.shape[1]

    def coordinates(self, columns: Tensor) -> Tensor:
        """Return the coordinates (count, k) of columns (n, k)."""
        return columns if self.vectors is None else self.vectors.mT @ columns

    def columns(self, coordinates: Tensor) -> Tensor:
        """Return the columns (n, k) that have these coordinates (count, k)."""
        return coordinates if self.vectors is None else self.vectors @ coordinates

    def follow(self, coordinates: Tensor, decay: float) -> None:
        """Take note of one step's coordinates (count, k)."""
        if self.moment is not None:
            self.moment.mul_(decay).addmm_(coordinates, coordinates.mT)

    def turn(self, others: Tensor, their_moment: Tensor, decay: float) -> Tensor | None:
        """Turn towards other columns (n, k) with their moment (k, k).

        Returns the inner products (count, count) of new directions [i, :] and old ones [:, j]; None: the
        side is whole and does not turn.
        """
        if self.vectors is None or self.moment is None:
            return None
        old = self.vectors
        self.vectors, self.moment = _leading(old, self.moment * decay, others, their_moment)
        return self.vectors.mT @ old


@dataclass(kw_only=True, slots=True)
class MatrixBasis:
    """Hold directions of the rows and of the columns of an (n, m) matrix.

    A side that is whole must be longer than the other has directions.
    """

    left: Side
    """a directions among the rows."""
    right: Side
    """b directions among the columns."""

    @classmethod
    def unknown(
        cls,
        shape: tuple[int, int],
        directions: tuple[int | None, int | None],
        device: torch.device,
    ) -> "MatrixBasis":
        """Return a basis of so many arbitrary directions of rows and of columns; None: a whole side."""
        left, right = (
            Side.unknown(size, count, device) for size, count in zip(shape, directions, strict=True)
        )
        return cls(left=left, right=right)

    @property
    def shape(self) -> torch.Size:
        """Return (a, b), the shape of the coefficients."""
        return torch.Size([self.left.count, self.right.count])

    @property
    def _left_is_smaller(self) -> bool:
        return self.left.count < self.right.count

    def project(self, matrix: Tensor, out: Tensor) -> None:
        """Write the coefficients (a, b) of a matrix (n, m) in this basis."""
        if self._left_is_smaller:
            out.copy_(self.right.coordinates(self.left.coordinates(matrix).mT).mT)
        else:
            out.copy_(self.left.coordinates(self.right.coordinates(matrix.mT).mT))

    def expand(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """Return two factors, (n, r) and (r, m), whose product has these coefficients (a, b)."""
        if self._left_is_smaller:
            assert self.left.vectors is not None
            return self.left.vectors, self.right.columns(coefficients.mT).mT
        assert self.right.vectors is not None
        return self.left.columns(coefficients), self.right.vectors.mT

    def follow(self, coefficients: Tensor, decay: float) -> None:
        """Take note of one step's coefficients (a, b)."""
        self.left.follow(coefficients, decay)
        self.right.follow(coefficients.mT, decay)

    def absorb(self, found: Refreshed, decay: float) -> tuple[Tensor | None, Tensor | None]:
        """Turn towards what a refresh found; return where the old directions of each side went."""
        factor = found.factor
        every = torch.eye(factor.shape[0], device=factor.device)
        return (
            self.left.turn(found.range_basis, factor @ factor.mT, decay),
            self.right.turn(factor.mT, every, decay),
        )

    def coefficients_of(self, found: Refreshed) -> Tensor:
        """Return the coefficients (a, b) of a refresh's sum."""
        left = self.left.coordinates(found.range_basis)
        return left @ self.right.coordinates(found.factor.mT).mT

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of directions and moments."""
        return {name: tensor.clone() for name, tensor in self._tensors().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        for name, tensor in self._tensors().items():
            tensor.copy_(state[name])

    def _tensors(self) -> dict[str, Tensor]:
        sides = {"left": self.left, "right": self.right}
        named = {name: side.vectors for name, side in sides.items()}
        named |= {f"{name}_moment": side.moment for name, side in sides.items()}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


def _leading(
    directions: Tensor, moment: Tensor, others: Tensor, their_moment: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the leading eigenvectors of D M D^T + E N E^T, as many as D has columns, and their moment."""
    span = orthonormal(torch.cat([directions, others], dim=1))
    inner, outer = span.mT @ directions, span.mT @ others
    both = inner @ moment @ inner.mT + outer @ their_moment @ outer.mT
    values, vectors = torch.linalg.eigh(both)
    kept = directions.shape[1]
    leading, axes = values.flip(0)[:kept], vectors.flip(1)[:, :kept]
    known = leading > _NEGLIGIBLE * leading[0]
    return _completed(span @ axes[:, known], kept), torch.diag(leading * known)


def _completed(known: Tensor, count: int) -> Tensor:
    """Add directions, always the same but for what is known, until there are `count`.

    Eigenvectors of what is zero but for rounding would do, were they not another on every run.
    """
    generator = torch.Generator().manual_seed(0)
    others = torch.randn(known.shape[0], count - known.shape[1], generator=generator)
    if not others.numel():
        return known
    return orthonormal(torch.cat([known, others.to(known.device)], dim=1))


def orthonormal(columns: Tensor) -> Tensor:
    """Return an orthonormal basis of the columns' span.

    Equal bits give equal bits on processors of one kind; workers must not be mixed.
    """
    # in rows, as it comes back from a checkpoint: products round by the order in memory
    basis: Tensor = torch.linalg.qr(columns).Q.contiguous()
    return basis


def sketch_columns(columns: int, rank: int, seed: int, device: torch.device = _CPU) -> Tensor:
    """Return the (columns, rank) matrix whose product with a matrix is the Count-Sketch of its columns.

    Each column goes into one of `rank` buckets with a random sign. The buckets are equally full, so that
    none is wasted and a sketch of full rank loses nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    buckets = torch.randperm(columns, generator=generator).remainder_(rank).unsqueeze(1)
    signs = torch.randint(2, (columns, 1), generator=generator).float().mul_(2).sub_(1)
    empty = torch.zeros(columns, rank, device=device)
    return empty.scatter_(1, buckets.to(device), signs.to(device))
