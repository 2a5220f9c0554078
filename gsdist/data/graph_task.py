"""Hold a heterogeneous graph with what is to be learnt on it: labels of nodes, or links.

A relation is the triple (source type, name, destination type) of PyG's `HeteroData`; messages go from
source to destination. A link that carries messages both ways is two relations. A metapath is a chain of
relations from its far end to the type that it describes.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsdist.errors import UnsupportedSetup

if TYPE_CHECKING:
    from torch_geometric.data import HeteroData

__all__ = [
    "Graph",
    "LinkTask",
    "Metapath",
    "NodeTask",
    "Relation",
    "add_links",
    "empty_graph",
    "memberships",
    "multi_hot",
    "reverse",
    "split_links",
    "split_nodes",
]

Relation = tuple[str, str, str]
Metapath = tuple[Relation, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """Describe a graph and the metapaths by which its nodes are looked at."""

    data: "HeteroData"
    """Per node type `x`, float32 dense or sparse `(n, features)`, or `num_nodes` where nodes have no
    features; per relation `edge_index`, int64 `(2, edges)`, and optionally `weight`, float32 `(edges,)`,
    how often each edge counts."""
    views: Mapping[str, tuple[Metapath, ...]]
    """For each node type that is described, its metapaths."""
    inverse: frozenset[Relation]
    """Relations of the second direction class; all others are of the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTask:
    """Ask for the class of some nodes."""

    graph: Graph
    target: str
    """Node type that has classes."""
    labels: Tensor
    """int64 `(n,)`, the class of every target node."""
    num_classes: int
    train: Tensor
    """int64, nodes to learn from; likewise those to choose the best weights by, and those to test on."""
    validation: Tensor
    test: Tensor
    layers: int = 1
    """Layers of the published model for this graph."""
    head_bias: bool = True
    """Whether its linear head has a bias."""
    gain: float = 1.0
    """Gain of its initialisation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkTask:
    """Ask which links of one relation there are. The graph holds the training links only."""

    graph: Graph
    relation: Relation
    train: Tensor
    """int64 `(2, n)`, source and destination of the links to learn from; likewise the other two."""
    validation: Tensor
    test: Tensor
    validation_negatives: Tensor
    """int64 `(2, n)`, pairs that are no links of any part, as many as there are links."""
    test_negatives: Tensor


def empty_graph() -> "HeteroData":
    """Return a HeteroData without nodes.

    Raises:
        UnsupportedSetup: torch-geometric is not installed.
    """
    try:
        from torch_geometric.data import HeteroData
    except ImportError as error:
        raise UnsupportedSetup(
            "graphs need torch-geometric, which is not installed: pip install 'gsdist[graph]'"
        ) from error
    return HeteroData()


def reverse(relation: Relation) -> Relation:
    """Return the relation that carries messages the other way, named as PyG names it."""
    source, name, destination = relation
    return (destination, f"rev_{name}", source)


def add_links(
    data: "HeteroData",
    relation: Relation,
    edges: NDArray[np.int64],
    *,
    back: Relation | None = None,
) -> None:
    """Add the distinct edges `(2, n)` of a relation and, as relation `back`, the reverse of each."""
    distinct = torch.from_numpy(np.unique(edges, axis=1))
    data[relation].edge_index = distinct
    data[back or reverse(relation)].edge_index = distinct.flip(0)


def memberships(
    values: Iterable[Iterable[str]], least: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[str]]:
    """Number the names that at least so many nodes have, in alphabetical order.

    Args:
        values: per node, the names it has.
        least: how many nodes must share a name.

    Returns:
        Distinct pairs of node and name, as two arrays, and the names.
    """
    sets = [set(own) for own in values]
    counts = Counter(name for own in sets for name in own)
    names = sorted(name for name, count in counts.items() if count >= least)
    number = {name: index for index, name in enumerate(names)}
    pairs = [
        (node, number[name])
        for node, own in enumerate(sets)
        for name in sorted(own)
        if name in number
    ]
    array = np.array(pairs, np.int64).reshape(-1, 2)
    return array[:, 0], array[:, 1], names


def multi_hot(
    rows: NDArray[np.int64], columns: NDArray[np.int64], shape: tuple[int, int]
) -> Tensor:
    """Return a sparse float32 matrix that is 1 where (row, column) is named, however often."""
    indices = torch.from_numpy(np.unique(np.stack([rows, columns]), axis=1))
    ones = torch.ones(indices.shape[1])
    return torch.sparse_coo_tensor(indices, ones, shape, is_coalesced=True, check_invariants=False)


def split_nodes(
    count: int, *, shares: tuple[float, float], seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Split the numbers 0 to count - 1 at random into training, validation and test part, each ascending.

    `shares` are those of training and validation.
    """
    order = np.random.default_rng(seed).permutation(count)
    borders = np.cumsum([int(count * share) for share in shares])
    train, validation, test = (torch.from_numpy(np.sort(part)) for part in np.split(order, borders))
    return train, validation, test


def split_links(
    links: Tensor, sizes: tuple[int, int], *, shares: tuple[float, float], seed: int
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Split links `(2, n)` at random and draw uniform negatives for the parts that are not trained on.

    Args:
        links: distinct pairs of source and destination.
        sizes: number of source and of destination nodes.
        shares: of the links for validation and for testing.
        seed: of split and negatives.

    Returns:
        Links for training, validation and testing; negatives for validation and testing, which are no
        links of any part.
    """
    generator = np.random.default_rng(seed)
    count = links.shape[1]
    order = torch.from_numpy(generator.permutation(count))
    held_out = [round(count * share) for share in shares]
    validation, test, train = torch.split(order, [*held_out, count - sum(held_out)])
    negatives = non_links(links, sizes, sum(held_out), generator)
    parts = (links[:, train], links[:, validation], links[:, test])
    return parts, (negatives[:, : held_out[0]], negatives[:, held_out[0] :])


def non_links(
    links: Tensor, sizes: tuple[int, int], count: int, generator: np.random.Generator
) -> Tensor:
    """Draw `count` pairs uniformly among those that are no links, as int64 `(2, count)`."""
    taken = np.unique(links[0].numpy() * sizes[1] + links[1].numpy())
    drawn = np.empty(0, np.int64)
    while len(drawn) < count:
        keys = generator.integers(0, sizes[0] * sizes[1], 2 * (count - len(drawn)) + 16)
        drawn = np.concatenate([drawn, keys[~np.isin(keys, taken)]])
    keys = drawn[:count]
    return torch.from_numpy(np.stack([keys // sizes[1], keys % sizes[1]]))
