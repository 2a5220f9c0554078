"""Turn a graph and its metapaths into chains of bipartite hops, which is all a view's encoder needs.

Every node on a metapath takes its complete neighbour set under the next relation, so its state does not
depend on which target asked for it: the ego graphs of all targets together are one chain of matrices. No
instance of a metapath is ever enumerated.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from gsdist.data.graph_task import Graph, Metapath, Relation, reverse
from gsdist.errors import ConfigError
from gsdist.workloads.graph.sparse import SparseMatrix
from gsdist.workloads.graph.transform import NodeInput

__all__ = ["EgoGraphs", "GraphViews", "Hop", "ViewBatch", "make_hop"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Hop:
    """Carry states over one relation."""

    relation: Relation
    mean: SparseMatrix
    """(destinations, sources): the weight of each edge over the destination's degree plus one."""
    mass: Tensor
    """float32 (destinations, 1): sums of the rows of `mean`, degree / (degree + 1)."""
    destinations: Tensor | None
    """int64, which of the batch's nodes of their type the destinations are; None: all in order."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EgoGraphs:
    """Hold what reaches all targets of a batch along one metapath, from the far end to the targets."""

    far_end: Tensor | None
    """int64, which of the batch's nodes of their type the first sources are; None: all in order."""
    hops: tuple[Hop, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ViewBatch:
    """Hold what the model needs to describe some nodes."""

    inputs: Mapping[str, NodeInput]
    """Per node type, the nodes whose features are transformed."""
    views: Mapping[str, tuple[EgoGraphs, ...]]
    """Per described node type, one entry per metapath."""
    wanted: Mapping[str, Tensor | None] = field(default_factory=dict)
    """Per described node type, the rows (int64) that are described in the end; None, or no entry: all."""


class GraphViews:
    """Check a graph and its metapaths and keep every relation as a matrix.

    Edges that occur twice count once, unless the relation has weights, which are added up.

    Args:
        graph: nodes, edges and metapaths.

    Raises:
        ConfigError: a metapath that does not chain, names a relation the graph lacks, or ends elsewhere.
    """

    def __init__(self, graph: Graph) -> None:
        for target, views in graph.views.items():
            if not views:
                raise ConfigError(f"node type {target!r} needs at least one metapath, got none")
            for view in views:
                _check(view, target, set(graph.data.edge_types))
        self.graph = graph
        self.relations = sorted(
            {relation for views in graph.views.values() for view in views for relation in view}
        )
        self.node_types = sorted(
            {end for source, _, target in self.relations for end in (source, target)}
        )
        self.sizes = {name: int(graph.data[name].num_nodes) for name in self.node_types}
        self.adjacency: dict[Relation, Any] = {
            relation: self._adjacency(relation) for relation in self.relations
        }
        """Per relation a SciPy CSR array (destinations, sources) of edge weights."""

    def _adjacency(self, relation: Relation) -> Any:
        store = self.graph.data[relation]
        source, destination = store.edge_index.numpy()
        weight = store.get("weight")
        matrix = scipy.sparse.csr_array(
            (
                np.ones(len(source), np.float32) if weight is None else weight.numpy(),
                (destination, source),
            ),
            (self.sizes[relation[2]], self.sizes[relation[0]]),
        )
        matrix.sum_duplicates()
        if weight is None:
            matrix.data[:] = 1
        return matrix

    @cached_property
    def features(self) -> Mapping[str, SparseMatrix | Tensor]:
        """Return the features of the node types that have any."""
        found: dict[str, SparseMatrix | Tensor] = {}
        for name in self.node_types:
            x = self.graph.data[name].get("x")
            if x is not None:
                dense = x.layout == torch.strided
                found[name] = x if dense else SparseMatrix.from_torch(x)
        return found

    def input_sizes(self) -> dict[str, int]:
        """Return per node type the number of its features, or of its nodes where they have none."""
        return {
            name: self.features[name].shape[1] if name in self.features else self.sizes[name]
            for name in self.node_types
        }

    def inputs_of(self, nodes: Mapping[str, Tensor | None]) -> dict[str, NodeInput]:
        """Return what `TypeTransform` takes, for nodes given by their numbers; None: all of a type."""
        return {name: self._input(name, chosen) for name, chosen in nodes.items()}

    def _input(self, name: str, chosen: Tensor | None) -> NodeInput:
        features = self.features.get(name)
        if features is None or chosen is None:
            return features if chosen is None else chosen
        return features.rows(chosen) if isinstance(features, SparseMatrix) else features[chosen]

    @cached_property
    def whole(self) -> ViewBatch:
        """Return the batch that describes all nodes."""
        return self._chain(self._hops)

    def whole_without(self, removed: Mapping[Relation, Tensor]) -> ViewBatch:
        """Return the batch that describes all nodes with some edges hidden, as `adjacency_without` says."""
        adjacency = self.adjacency_without(removed)
        return self._chain(
            {
                relation: hop
                if adjacency[relation] is self.adjacency[relation]
                else make_hop(relation, adjacency[relation])
                for relation, hop in self._hops.items()
            }
        )

    def adjacency_without(self, removed: Mapping[Relation, Tensor]) -> dict[Relation, Any]:
        """Return `adjacency` without the named edges, int64 `(2, n)`, source and destination.

        They also disappear from the reverse of their relation.
        """
        found = dict(self.adjacency)
        for relation, edges in removed.items():
            for hidden, pairs in ((relation, edges), (reverse(relation), edges.flip(0))):
                if hidden in found:
                    source, destination = pairs.numpy()
                    found[hidden] = _without(found[hidden], destination, source)
        return found

    @cached_property
    def _hops(self) -> dict[Relation, Hop]:
        return {relation: make_hop(relation, own) for relation, own in self.adjacency.items()}

    def _chain(self, hops: Mapping[Relation, Hop]) -> ViewBatch:
        return ViewBatch(
            inputs=self.inputs_of(dict.fromkeys(self.node_types)),
            views={
                target: tuple(
                    EgoGraphs(far_end=None, hops=tuple(hops[relation] for relation in view))
                    for view in views
                )
                for target, views in self.graph.views.items()
            },
        )


def make_hop(
    relation: Relation,
    adjacency: Any,
    *,
    destinations: Tensor | None = None,
    degrees: Any | None = None,
) -> Hop:
    """Make a hop from a SciPy matrix (destinations, sources) of edge weights.

    Args:
        relation: what the edges are.
        adjacency: the edges that carry messages.
        destinations: as in `Hop`.
        degrees: `(destinations,)`, the degrees in the graph, where `adjacency` holds a sample of the
            edges; then the sample's mean stands for that of all.
    """
    sums = np.asarray(adjacency.sum(axis=1), np.float32).reshape(-1)
    true = sums if degrees is None else degrees.astype(np.float32)
    mass = true / (true + 1)
    scale = np.divide(mass, sums, out=np.zeros_like(mass), where=sums > 0)
    return Hop(
        relation=relation,
        mean=SparseMatrix(scipy.sparse.diags_array(scale) @ adjacency),
        mass=torch.from_numpy(mass)[:, None],
        destinations=destinations,
    )


def _without(adjacency: Any, destinations: Any, sources: Any) -> Any:
    """Return a copy of the matrix without these entries."""
    entries = adjacency.tocoo()
    width = adjacency.shape[1]
    keys = entries.row.astype(np.int64) * width + entries.col
    kept = ~np.isin(keys, destinations * width + sources)
    return scipy.sparse.csr_array(
        (entries.data[kept], (entries.row[kept], entries.col[kept])), adjacency.shape
    )


def _check(view: Metapath, target: str, known: set[Relation]) -> None:
    shown = " -> ".join("/".join(relation) for relation in view)
    for relation in view:
        if relation not in known:
            raise ConfigError(f"metapath {shown}: the graph has no relation {relation}")
    for first, second in pairwise(view):
        if first[2] != second[0]:
            raise ConfigError(
                f"metapath {shown} does not chain: {first} ends in {first[2]!r} and {second} begins "
                f"at {second[0]!r}"
            )
    if not view or view[-1][2] != target:
        raise ConfigError(f"metapath {shown} must end in the node type it describes, {target!r}")
