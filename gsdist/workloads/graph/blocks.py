"""Cut mini-batches out of a graph: layered blocks, walked backwards from the targets hop by hop.

A level's block holds *all* its destinations' in-edges, or at most `cap` of each, drawn uniformly. PyG's
NeighborLoader is no substitute: it expands a node only where it first appears, so on author-paper-term-
paper-author a paper that is seen at the first and at the third hop has no authors at the third.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from gsdist.data.graph_task import Metapath, Relation
from gsdist.errors import ConfigError
from gsdist.workloads.graph.views import EgoGraphs, GraphViews, ViewBatch, make_hop

__all__ = ["BlockSampler", "in_edges"]

_SEED_STRIDE = 1000
"""Keeps the seeds of a view's hops apart from those of other views."""

Nodes = NDArray[np.int64]


class BlockSampler:
    """Make batches that hold what reaches some nodes.

    Args:
        views: the graph.
        cap: in-edges drawn per node and hop, uniformly and without replacement; their mean stands for
            that of all. None: all in-edges, which gives exactly what the whole graph gives.

    Raises:
        ConfigError: a cap below 1.
    """

    def __init__(self, views: GraphViews, cap: int | None = None) -> None:
        if cap is not None and cap < 1:
            raise ConfigError(f"at least 1 neighbour must be drawn per hop, got {cap}")
        self._views = views
        self._cap = cap

    def batch(
        self,
        targets: Mapping[str, Tensor],
        generator: torch.Generator | None = None,
        removed: Mapping[Relation, Tensor] | None = None,
    ) -> ViewBatch:
        """Return the batch that describes these nodes, in this order.

        Args:
            targets: per described node type the numbers of some nodes, int64 `(n,)`.
            generator: draws neighbours; torch's global one when None. One number is drawn where there is
                a cap.
            removed: edges to hide, as in `GraphViews.adjacency_without`.
        """
        adjacency = self._views.adjacency_without(removed or {})
        seed = 0
        if self._cap is not None:
            seed = int(torch.randint(2**31, (), generator=generator))
        chains = {
            name: [
                _Chain(view, nodes.numpy(), adjacency, self._cap, seed + number)
                for number, view in enumerate(self._views.graph.views[name])
            ]
            for name, nodes in targets.items()
        }
        touched: dict[str, list[Nodes]] = {}
        for own in chains.values():
            for chain in own:
                for name, nodes in chain.touched():
                    touched.setdefault(name, []).append(nodes)
        union = {name: np.unique(np.concatenate(lists)) for name, lists in touched.items()}
        return ViewBatch(
            inputs=self._views.inputs_of(
                {name: torch.from_numpy(nodes) for name, nodes in union.items()}
            ),
            views={
                name: tuple(chain.ego_graphs(union) for chain in own)
                for name, own in chains.items()
            },
        )


class _Chain:
    """Hold the blocks of one view, from the far end to the targets."""

    def __init__(
        self,
        view: Metapath,
        targets: Nodes,
        adjacency: Mapping[Relation, Any],
        cap: int | None,
        seed: int,
    ) -> None:
        self._view = view
        self._levels = [targets]
        self._blocks: list[Any] = []
        self._degrees: list[Any] = []
        for hop, relation in enumerate(reversed(view)):
            whole = adjacency[relation]
            destinations = self._levels[0]
            indptr, chosen = in_edges(whole, destinations, cap, seed + _SEED_STRIDE * hop)
            sources, columns = np.unique(whole.indices[chosen], return_inverse=True)
            block = scipy.sparse.csr_array(
                (whole.data[chosen], columns, indptr), (len(destinations), len(sources))
            )
            self._levels.insert(0, sources.astype(np.int64))
            self._blocks.insert(0, block)
            self._degrees.insert(0, np.asarray(whole.sum(axis=1)).reshape(-1)[destinations])

    def touched(self) -> list[tuple[str, Nodes]]:
        """List the node type and the nodes of every level."""
        names = [self._view[0][0], *(relation[2] for relation in self._view)]
        return list(zip(names, self._levels, strict=True))

    def ego_graphs(self, union: Mapping[str, Nodes]) -> EgoGraphs:
        """Number the nodes by their place in the union of their type."""
        places = [
            torch.from_numpy(np.searchsorted(union[name], nodes)) for name, nodes in self.touched()
        ]
        hops = tuple(
            make_hop(relation, block, destinations=place, degrees=degrees)
            for relation, block, place, degrees in zip(
                self._view, self._blocks, places[1:], self._degrees, strict=True
            )
        )
        return EgoGraphs(far_end=places[0], hops=hops)


def in_edges(
    adjacency: Any, destinations: Nodes, cap: int | None, seed: int
) -> tuple[Nodes, Nodes]:
    """Choose in-edges of nodes, all or at most `cap` of each, uniformly and without replacement.

    Args:
        adjacency: SciPy CSR array (destinations, sources).
        destinations: rows.
        cap: the bound, or None.
        seed: of the choice.

    Returns:
        Where each row's edges begin among those chosen, `(rows + 1,)`, and their places in the array.
    """
    offsets, positions = _in_edges(adjacency.indptr, destinations, -1 if cap is None else cap, seed)
    return offsets, positions


@njit  # type: ignore[untyped-decorator]
def _in_edges(indptr: Any, destinations: Any, cap: int, seed: int) -> Any:
    """Return row offsets and positions of the chosen edges; at most `cap` per row unless it is -1."""
    np.random.seed(seed)
    offsets = np.zeros(len(destinations) + 1, np.int64)
    for row in range(len(destinations)):
        node = destinations[row]
        degree = indptr[node + 1] - indptr[node]
        offsets[row + 1] = offsets[row] + (degree if cap < 0 else min(degree, cap))
    chosen = np.empty(offsets[-1], np.int64)
    for row in range(len(destinations)):
        first = indptr[destinations[row]]
        degree = indptr[destinations[row] + 1] - first
        begin, count = offsets[row], offsets[row + 1] - offsets[row]
        # Reservoir sampling: every edge after the first `count` may replace one of those held.
        for edge in range(degree):
            place = edge if edge < count else np.random.randint(0, edge + 1)
            if place < count:
                chosen[begin + place] = first + edge
    return offsets, chosen
