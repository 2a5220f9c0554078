"""Multiply a constant sparse matrix with a dense one that is learnt, fast in both directions."""

import warnings
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

__all__ = ["SparseMatrix"]


class SparseMatrix:
    """Hold a constant float32 matrix in compressed rows, and its transpose for the backward pass.

    Scattering edge by edge takes about ten times as long on a CPU.

    Args:
        matrix: any SciPy sparse matrix; duplicates are added up.
    """

    def __init__(self, matrix: Any) -> None:
        compressed = scipy.sparse.csr_array(matrix, dtype=np.float32)
        compressed.sum_duplicates()
        self._scipy = compressed
        self._forward = _to_torch(compressed)
        self._backward = _to_torch(scipy.sparse.csr_array(compressed.T))

    @classmethod
    def from_torch(cls, matrix: Tensor) -> "SparseMatrix":
        """Convert a sparse torch matrix of any layout."""
        coordinates = matrix.to_sparse_coo().coalesce()  # type: ignore[no-untyped-call]
        rows, columns = coordinates.indices().numpy()
        return cls(
            scipy.sparse.coo_array((coordinates.values().numpy(), (rows, columns)), matrix.shape)
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Return rows and columns."""
        rows, columns = self._scipy.shape
        return rows, columns

    def rows(self, chosen: Tensor) -> "SparseMatrix":
        """Return the rows of the given numbers, int64 `(n,)`."""
        return SparseMatrix(self._scipy[chosen.numpy()])

    def to_scipy(self) -> Any:
        """Return the matrix as SciPy's CSR array; not a copy."""
        return self._scipy

    def to_dense(self) -> Tensor:
        """Return all entries."""
        return torch.from_numpy(self._scipy.toarray())

    def __matmul__(self, dense: Tensor) -> Tensor:
        """Return the product with float32 `(columns, n)`; differentiable in the dense factor."""
        product: Tensor = _Product.apply(dense.float(), self._forward, self._backward)
        return product


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dense: Tensor, matrix: Tensor, transpose: Tensor) -> Tensor:
        ctx.transpose = transpose
        return matrix @ dense

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.transpose @ gradients[0].contiguous(), None, None


def _to_torch(matrix: Any) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr.astype(np.int64)),
            torch.from_numpy(matrix.indices.astype(np.int64)),
            torch.from_numpy(matrix.data),
            matrix.shape,
            check_invariants=False,
        )
