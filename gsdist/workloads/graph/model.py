"""Build MV-HetGNN: node types to one width, views as chains of hops, fusion, head.

Source: Shao et al., Heterogeneous Graph Neural Network with Multi-view Representation Learning (arXiv
2108.13650). Reconstructed from the code its authors released; the paper's equations were not at hand.

| paper | here |
| --- | --- |
| h'_v | `states[type]`, transformed features |
| H^l_v | `state`, level l of a view |
| e_r | `translations[r]` |
| W_dir, b_dir | `weights[direction]`, `biases[direction]` |
| z_v | what `ViewEncoder` returns |
| d | `width` |
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsdist.data.graph_task import Metapath, Relation
from gsdist.errors import ConfigError
from gsdist.workloads.graph.dropout import dropout
from gsdist.workloads.graph.fusion import AutoFusion
from gsdist.workloads.graph.transform import TypeTransform
from gsdist.workloads.graph.views import EgoGraphs, ViewBatch

__all__ = ["GraphOutput", "ModelShape", "MvHetGnn", "ViewEncoder", "chosen_rows"]


class GraphOutput(NamedTuple):
    """Hold what a model says of the wanted nodes."""

    embeddings: dict[str, Tensor]
    """Per described node type, float32 `(n, d)`."""
    logits: Tensor | None
    """float32 `(n, classes)`, of the target type; None without a head."""
    reconstruction: Tensor | None
    """Scalar loss of all fusions; None for a model without fusion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Describe a model's size and how it is initialised and trained."""

    width: int = 64
    """d, numbers per node in all layers."""
    layers: int = 1
    """Times that views are encoded and fused."""
    input_dropout: float = 0.3
    """Probability of dropping an entry of the transformed features."""
    hop_dropout: float = 0.3
    """Probability of dropping an entry of the state after each hop."""
    gain: float = 1.0
    """Factor of the initialisation of translations, fusion and head."""
    num_classes: int | None = None
    """Outputs of the head; None: no head."""
    head_bias: bool = True
    """Whether the head has a bias."""

    def __post_init__(self) -> None:
        """Raise ConfigError for a value out of range."""
        for name in ("width", "layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("input_dropout", "hop_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must be in [0, 1), got {getattr(self, name)}")


class ViewEncoder(nn.Module):
    """Encode ego graphs hop by hop: translate, average, transform, add the node's own features.

    One translation per relation, and one weight matrix per direction class, are shared by all views.

    Args:
        relations: all that occur in views.
        inverse: those of the second direction class.
        shape: width, dropout, gain.
    """

    def __init__(
        self, relations: Sequence[Relation], inverse: frozenset[Relation], shape: ModelShape
    ) -> None:
        super().__init__()
        width = shape.width
        self._row = {relation: row for row, relation in enumerate(relations)}
        classes = sorted({relation in inverse for relation in relations})
        self._direction = {relation: classes.index(relation in inverse) for relation in relations}
        self.translations = nn.Parameter(torch.empty(len(relations), width))
        for row in self.translations.data:
            nn.init.xavier_normal_(row[None], shape.gain)
        self.weights = nn.Parameter(torch.empty(len(classes), width, width))
        for matrix in self.weights.data:
            nn.init.xavier_uniform_(matrix)
        self.biases = nn.Parameter(torch.zeros(len(classes), width))
        self.dropout = shape.hop_dropout

    def forward(self, states: Mapping[str, Tensor], ego_graphs: EgoGraphs) -> Tensor:
        """Return the encoding by one view, float32 `(targets, d)`."""
        first = ego_graphs.hops[0].relation[0]
        state = chosen_rows(states[first], ego_graphs.far_end)
        for hop in ego_graphs.hops:
            translation = self.translations[self._row[hop.relation]]
            direction = self._direction[hop.relation]
            message = hop.mean @ state + hop.mass * translation
            update = F.relu(message @ self.weights[direction] + self.biases[direction])
            own = chosen_rows(states[hop.relation[2]], hop.destinations)
            state = dropout(own + update, self.dropout, self.training)
        return state / (len(ego_graphs.hops) + 1)


class MvHetGnn(nn.Module):
    """Describe nodes by several views and fuse them.

    Args:
        input_sizes: per node type, as `TypeTransform` takes them.
        views: per described node type, its metapaths.
        inverse: relations of the second direction class.
        target: node type that the head classifies; None without a head.
        shape: sizes and settings.

    Raises:
        ConfigError: several layers, but a node type on a metapath has no views of its own.
    """

    def __init__(
        self,
        input_sizes: Mapping[str, int],
        views: Mapping[str, tuple[Metapath, ...]],
        inverse: frozenset[Relation],
        target: str | None,
        shape: ModelShape,
    ) -> None:
        super().__init__()
        if shape.layers > 1 and set(views) != set(input_sizes):
            missing = sorted(set(input_sizes) - set(views))
            raise ConfigError(
                f"layers={shape.layers} needs views of every node type, and {missing} have none; use "
                "one layer"
            )
        self.target = target
        self.transforms = nn.ModuleDict(
            {
                name: TypeTransform(size, shape.width, shape.input_dropout)
                for name, size in input_sizes.items()
            }
        )
        relations = sorted(
            {relation for paths in views.values() for path in paths for relation in path}
        )
        self.encoders = nn.ModuleList(
            ViewEncoder(relations, inverse, shape) for _ in range(shape.layers)
        )
        self.fusions = nn.ModuleList(
            nn.ModuleDict(
                {
                    name: AutoFusion(len(paths), shape.width, shape.gain)
                    for name, paths in views.items()
                }
            )
            for _ in range(shape.layers)
        )
        self.head: nn.Linear | None = None
        if shape.num_classes is not None:
            self.head = nn.Linear(shape.width, shape.num_classes, bias=shape.head_bias)
            nn.init.xavier_normal_(self.head.weight, shape.gain)

    def forward(self, batch: ViewBatch) -> GraphOutput:
        """Describe the wanted nodes of a batch; with several layers, of a batch of the whole graph."""
        states = {name: self.transforms[name](nodes) for name, nodes in batch.inputs.items()}
        losses: list[Tensor] = []
        for layer, (encoder, fusions) in enumerate(zip(self.encoders, self.fusions, strict=True)):
            last = layer == len(self.encoders) - 1
            wanted = batch.wanted if last else {}
            fused = {}
            for name, views in batch.views.items():
                encodings = torch.stack(
                    [chosen_rows(encoder(states, view), wanted.get(name)) for view in views]
                )
                fused[name], loss = fusions[name](encodings)  # type: ignore[index]
                losses.append(loss)
            states = fused
        logits = None
        if self.head is not None:
            assert self.target is not None
            logits = self.head(states[self.target])
        return GraphOutput(states, logits, torch.stack(losses).sum())

    def orthogonality(self) -> Tensor:
        """Return the sum of `AutoFusion.orthogonality`, which depends on parameters only."""
        fusions = [module for module in self.modules() if isinstance(module, AutoFusion)]
        return torch.stack([fusion.orthogonality() for fusion in fusions]).sum()


def chosen_rows(values: Tensor, chosen: Tensor | None) -> Tensor:
    """Return the rows of the given numbers, int64; None: all."""
    return values if chosen is None else values[chosen]
