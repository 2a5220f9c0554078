"""Build the networks MV-HetGNN is compared with, from PyG's layers: HAN, HGT and R-GCN.

Inputs go through the same transformation and end in the same linear head. HGT and R-GCN describe the whole
graph in every step; HAN attends for the wanted nodes only.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsdist.workloads.graph.model import GraphOutput, ModelShape, chosen_rows
from gsdist.workloads.graph.transform import TypeTransform
from gsdist.workloads.graph.views import GraphViews, ViewBatch

__all__ = ["BASELINES", "build_baseline"]

_HEADS = 8
_WANTED = "wanted"
"""HAN's name for the target nodes that are described, besides the type whose nodes they attend to."""


class _Baseline(nn.Module, ABC):
    def __init__(self, views: GraphViews, target: str, shape: ModelShape) -> None:
        super().__init__()
        self.target = target
        self.shape = shape
        self.transforms = nn.ModuleDict(
            {
                name: TypeTransform(size, shape.width, shape.input_dropout)
                for name, size in views.input_sizes().items()
                if name in self.types_read(views)
            }
        )
        assert shape.num_classes is not None
        self.head = nn.Linear(shape.width, shape.num_classes)

    def types_read(self, views: GraphViews) -> list[str]:
        """List the node types whose features are read."""
        return views.node_types

    @abstractmethod
    def describe(self, states: Mapping[str, Tensor], wanted: Tensor | None) -> Tensor:
        """Return the embeddings of the wanted target nodes, None: all, from transformed features."""

    def forward(self, batch: ViewBatch) -> GraphOutput:
        """Describe the wanted nodes of a batch of the whole graph."""
        states = {name: part(batch.inputs[name]) for name, part in self.transforms.items()}
        rows = self.describe(states, batch.wanted.get(self.target))
        return GraphOutput({self.target: rows}, self.head(rows), None)

    def _dropped(self, values: Tensor) -> Tensor:
        return F.dropout(values, self.shape.hop_dropout, self.training)


class _Han(_Baseline):
    """Attend over pairs of target nodes that a metapath connects, then over metapaths.

    The weight of a metapath is a mean over the wanted nodes, so that a batch attends over its own pairs only.
    """

    def __init__(self, views: GraphViews, target: str, shape: ModelShape) -> None:
        super().__init__(views, target, shape)
        from torch_geometric.nn import HANConv

        self._reached = {
            (target, f"view{number}", _WANTED): _ends(views, view)
            for number, view in enumerate(views.graph.views[target])
            if view[0][0] == target
        }
        self.layer = HANConv(
            shape.width,
            shape.width,
            ([target, _WANTED], list(self._reached)),
            heads=_HEADS,
            dropout=shape.hop_dropout,
        )
        self.layer.proj[_WANTED] = self.layer.proj[target]

    def types_read(self, views: GraphViews) -> list[str]:
        """List the target type, the only one that HAN reads."""
        return [self.target]

    def describe(self, states: Mapping[str, Tensor], wanted: Tensor | None) -> Tensor:
        """Return the embeddings of the wanted target nodes."""
        nodes = states[self.target]
        edges = {
            name: _pairs(matrix if wanted is None else matrix[wanted.numpy()])
            for name, matrix in self._reached.items()
        }
        ends = {self.target: nodes, _WANTED: chosen_rows(nodes, wanted)}
        found: Tensor = self.layer(ends, edges)[_WANTED]
        return self._dropped(found)


class _Hgt(_Baseline):
    """Attend over all typed edges, two layers."""

    def __init__(self, views: GraphViews, target: str, shape: ModelShape) -> None:
        super().__init__(views, target, shape)
        from torch_geometric.nn import HGTConv

        self._edges = _edges(views)
        metadata = (views.node_types, list(self._edges))
        self.layers = nn.ModuleList(
            HGTConv(shape.width, shape.width, metadata, heads=_HEADS) for _ in range(2)
        )

    def describe(self, states: Mapping[str, Tensor], wanted: Tensor | None) -> Tensor:
        """Return the embeddings of the wanted target nodes."""
        for layer in self.layers:
            states = {
                name: self._dropped(value)
                for name, value in layer(dict(states), self._edges).items()
                if value is not None
            }
        return chosen_rows(states[self.target], wanted)


class _Rgcn(_Baseline):
    """Average over each relation's neighbours with a weight matrix per relation, two layers."""

    def __init__(self, views: GraphViews, target: str, shape: ModelShape) -> None:
        super().__init__(views, target, shape)
        from torch_geometric.nn import RGCNConv

        starts = np.cumsum([0, *(views.sizes[name] for name in views.node_types)])
        first = dict(zip(views.node_types, starts.tolist(), strict=False))
        edges = _edges(views)
        self._order = views.node_types
        self._targets = slice(first[target], first[target] + views.sizes[target])
        self._edges = torch.cat(
            [
                pairs + torch.tensor([[first[source]], [first[destination]]])
                for (source, _, destination), pairs in edges.items()
            ],
            dim=1,
        )
        self._kinds = torch.cat(
            [torch.full((pairs.shape[1],), kind) for kind, pairs in enumerate(edges.values())]
        )
        self.layers = nn.ModuleList(
            RGCNConv(shape.width, shape.width, len(edges)) for _ in range(2)
        )

    def describe(self, states: Mapping[str, Tensor], wanted: Tensor | None) -> Tensor:
        """Return the embeddings of the wanted target nodes."""
        values = torch.cat([states[name] for name in self._order])
        first, second = self.layers
        values = self._dropped(F.relu(first(values, self._edges, self._kinds)))
        found: Tensor = second(values, self._edges, self._kinds)
        return chosen_rows(found[self._targets], wanted)


BASELINES: dict[str, type[_Baseline]] = {"han": _Han, "hgt": _Hgt, "r-gcn": _Rgcn}


def build_baseline(name: str, views: GraphViews, target: str, shape: ModelShape) -> nn.Module:
    """Build a baseline whose trained parameters all receive a gradient.

    The last layers of HGT and R-GCN also describe other node types, which nothing depends on; parameters
    without gradient are frozen, as gradient exchange would wait for them.
    """
    model = BASELINES[name](views, target, shape)
    with torch.random.fork_rng():
        logits = model(views.whole).logits
        logits.square().sum().backward()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
    return model


def _edges(views: GraphViews) -> dict[tuple[str, str, str], Tensor]:
    return {relation: _pairs(matrix) for relation, matrix in views.adjacency.items()}


def _ends(views: GraphViews, view: tuple[tuple[str, str, str], ...]) -> Any:
    """Return which far ends a metapath connects with which targets, a SciPy matrix (targets, far ends)."""
    product = views.adjacency[view[0]]
    for relation in view[1:]:
        product = views.adjacency[relation] @ product
    return product


def _pairs(matrix: Any) -> Tensor:
    entries = matrix.tocoo()
    return torch.from_numpy(np.stack([entries.col, entries.row]).astype(np.int64))
