"""Bring the nodes of one type to the common width."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsdist.workloads.graph.dropout import dropout
from gsdist.workloads.graph.sparse import SparseMatrix

__all__ = ["NodeInput", "TypeTransform"]

NodeInput = SparseMatrix | Tensor | None
"""Features `(n, inputs)`, sparse or dense float32, or, of nodes without features, their numbers as int64
`(n,)`; None stands for all nodes of a type without features."""


class TypeTransform(nn.Module):
    """Compute h' = relu(dropout(x W + b)) for the nodes of one type.

    Nodes without features have a row of W of their own, which is what the identity matrix as x gives.

    Source: node feature transformation of MV-HetGNN (arXiv 2108.13650), as its authors' code does it.

    Args:
        inputs: number of features, or of nodes where they have none.
        width: d.
        dropout: probability of dropping an entry.
    """

    def __init__(self, inputs: int, width: int, dropout: float) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(inputs, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(width).uniform_(-bound, bound))
        self.dropout = dropout

    def forward(self, nodes: NodeInput) -> Tensor:
        """Return float32 `(n, d)`."""
        rows: Tensor
        if nodes is None:
            rows = self.weight
        elif isinstance(nodes, Tensor) and not nodes.is_floating_point():
            rows = F.embedding(nodes, self.weight)
        else:
            rows = nodes @ self.weight
        return F.relu(dropout(rows + self.bias, self.dropout, self.training))
