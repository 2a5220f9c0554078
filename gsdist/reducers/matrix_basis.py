"""Know the directions in which one matrix is heavy: find them in sketches, follow them, work in them.

Pure functions and one small state; all ranks compute the same from the same merged sums.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["MatrixBasis", "Refreshed", "orthonormal", "sketch_columns"]

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
class MatrixBasis:
    """Hold orthonormal directions of rows and columns of an (n, m) matrix, heaviest first."""

    left: Tensor
    """(n, a) directions among the rows."""
    right: Tensor
    """(m, b) directions among the columns."""
    left_moment: Tensor
    """(a, a): decayed sum of C C^T, C being the coefficients seen."""
    right_moment: Tensor
    """(b, b): decayed sum of C^T C."""

    @classmethod
    def unknown(cls, rows: int, columns: int, limit: int) -> "MatrixBasis":
        """Return a basis of arbitrary directions, at most `limit` per side."""
        a, b = min(rows, limit), min(columns, limit)
        return cls(
            left=_completed(torch.empty(rows, 0), a),
            right=_completed(torch.empty(columns, 0), b),
            left_moment=torch.zeros(a, a),
            right_moment=torch.zeros(b, b),
        )

    @property
    def shape(self) -> torch.Size:
        """Return (a, b), the shape of the coefficients."""
        return torch.Size([self.left.shape[1], self.right.shape[1]])

    def project(self, matrix: Tensor, out: Tensor) -> None:
        """Write the coefficients (a, b) of a matrix (n, m) in this basis."""
        if self.left.shape[1] < self.right.shape[1]:
            torch.matmul(self.left.mT @ matrix, self.right, out=out)
        else:
            torch.matmul(self.left.mT, matrix @ self.right, out=out)

    def expand(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """Return two factors, (n, r) and (r, m), whose product has these coefficients (a, b)."""
        if self.left.shape[1] < self.right.shape[1]:
            return self.left, coefficients @ self.right.mT
        return self.left @ coefficients, self.right.mT

    def follow(self, coefficients: Tensor, decay: float) -> None:
        """Take note of one step's coefficients (a, b)."""
        self.left_moment.mul_(decay).addmm_(coefficients, coefficients.mT)
        self.right_moment.mul_(decay).addmm_(coefficients.mT, coefficients)

    def absorb(self, found: Refreshed, decay: float) -> tuple[Tensor, Tensor]:
        """Turn towards what a refresh found; return where the old directions went: (a, a), (b, b).

        Entry [i, j] of a result is the inner product of new direction i and old direction j.
        """
        old_left, old_right = self.left, self.right
        every = torch.eye(found.factor.shape[0])
        self.left, self.left_moment = _leading(
            self.left, self.left_moment * decay, found.range_basis, found.factor @ found.factor.mT
        )
        self.right, self.right_moment = _leading(
            self.right, self.right_moment * decay, found.factor.mT, every
        )
        return self.left.mT @ old_left, self.right.mT @ old_right

    def coefficients_of(self, found: Refreshed) -> Tensor:
        """Return the coefficients (a, b) of a refresh's sum."""
        return (self.left.mT @ found.range_basis) @ (found.factor @ self.right)


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
    return orthonormal(torch.cat([known, others], dim=1)) if others.numel() else known


def orthonormal(columns: Tensor) -> Tensor:
    """Return an orthonormal basis of the columns' span.

    Equal bits give equal bits on processors of one kind; workers must not be mixed.
    """
    # in rows, as it comes back from a checkpoint: products round by the order in memory
    basis: Tensor = torch.linalg.qr(columns).Q.contiguous()
    return basis


def sketch_columns(columns: int, rank: int, seed: int) -> Tensor:
    """Return the (columns, rank) matrix whose product with a matrix is the Count-Sketch of its columns.

    Each column goes into one of `rank` buckets with a random sign. The buckets are equally full, so that
    none is wasted and a sketch of full rank loses nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    buckets = torch.randperm(columns, generator=generator).remainder_(rank).unsqueeze(1)
    signs = torch.randint(2, (columns, 1), generator=generator).float().mul_(2).sub_(1)
    return torch.zeros(columns, rank).scatter_(1, buckets, signs)
