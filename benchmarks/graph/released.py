"""Re-create how the released MV-HetGNN computes a step: dense identity inputs, edge by edge.

From the description in the specification of this project: every node type without features has a dense
identity matrix as input, other features are dense too, all nodes of the graph are transformed for every
batch, and messages are gathered and scattered over single edges. Parameters, loss and result are those of
`gsdist.workloads.graph`; a test holds both against each other.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from gsdist.workloads.graph.sparse import SparseMatrix
from gsdist.workloads.graph.transform import NodeInput
from gsdist.workloads.graph.views import EgoGraphs, Hop, ViewBatch

__all__ = ["EdgeList", "as_released"]


class EdgeList(SparseMatrix):
    """Multiply as message passing over single edges does: gather, weigh, scatter."""

    def __init__(self, matrix: SparseMatrix) -> None:
        entries = matrix.to_scipy().tocoo()
        super().__init__(entries)
        self._rows = torch.from_numpy(entries.row.astype("int64"))
        self._columns = torch.from_numpy(entries.col.astype("int64"))
        self._weights = torch.from_numpy(entries.data)[:, None]

    def __matmul__(self, dense: Tensor) -> Tensor:
        """Return the product with float32 `(columns, n)`."""
        messages = dense[self._columns] * self._weights
        return torch.zeros(self.shape[0], dense.shape[1]).index_add(0, self._rows, messages)


def as_released(batch: ViewBatch, sizes: Mapping[str, int]) -> ViewBatch:
    """Turn a batch of the whole graph into dense inputs and edge lists.

    Args:
        batch: what `GraphViews.whole` gives.
        sizes: number of nodes per type.
    """
    hops: dict[int, Hop] = {}

    def scattered(hop: Hop) -> Hop:
        if id(hop) not in hops:
            hops[id(hop)] = replace(hop, mean=EdgeList(hop.mean))
        return hops[id(hop)]

    return replace(
        batch,
        inputs={name: _dense(nodes, sizes[name]) for name, nodes in batch.inputs.items()},
        views={
            name: tuple(
                EgoGraphs(far_end=view.far_end, hops=tuple(map(scattered, view.hops)))
                for view in views
            )
            for name, views in batch.views.items()
        },
    )


def _dense(nodes: NodeInput, size: int) -> Tensor:
    if nodes is None:
        return torch.eye(size)
    return nodes.to_dense() if isinstance(nodes, SparseMatrix) else nodes
