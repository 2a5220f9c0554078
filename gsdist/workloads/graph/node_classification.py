"""Classify the nodes of a heterogeneous graph, and measure how they cluster."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from gsdist.data.graph_task import NodeTask
from gsdist.data.graphs import load_node_task
from gsdist.errors import ConfigError
from gsdist.workloads.contract import FinalMeasures, LossParts
from gsdist.workloads.graph.baselines import BASELINES, build_baseline
from gsdist.workloads.graph.config import GraphConfig
from gsdist.workloads.graph.evaluation import (
    clustering,
    f1_scores,
    in_the_plane,
    linear_classifier,
)
from gsdist.workloads.graph.model import GraphOutput, ModelShape, MvHetGnn
from gsdist.workloads.graph.regularised import Numbers, RegularisedGraphWorkload
from gsdist.workloads.graph.views import GraphViews, ViewBatch

__all__ = ["NodeBatch", "NodeConfig", "NodeWorkload"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig(GraphConfig):
    """Choose data, model, batches and regularisers, and how classes count."""

    model: Literal["mv-hetgnn", "han", "hgt", "r-gcn"] = "mv-hetgnn"
    """MV-HetGNN, or a network to compare it with, of PyG's layers."""
    class_weights: Literal["equal", "balanced"] = "equal"
    """Weight of a node in the loss; balanced: by one over the size of its class."""
    support_vectors: bool = False
    """Also report F1 of a linear classifier on the embeddings of the test nodes, with 20 to 80 % of their
    labels (the protocol of the papers); takes seconds to minutes."""

    def __post_init__(self) -> None:
        """Check names and ranges.

        Raises:
            ConfigError: an unknown name or a value out of range.
        """
        GraphConfig.__post_init__(self)
        if self.model not in ("mv-hetgnn", *BASELINES):
            known = ", ".join(["mv-hetgnn", *BASELINES])
            raise ConfigError(f"unknown model {self.model!r}; expected one of {known}")
        if self.model in BASELINES and self.blocks == "layered":
            raise ConfigError(
                f"model={self.model!r} describes the whole graph; leave blocks='whole'"
            )
        if self.class_weights not in ("equal", "balanced"):
            raise ConfigError(
                f"class_weights must be 'equal' or 'balanced', got {self.class_weights!r}"
            )


class NodeBatch(NamedTuple):
    """Hold some target nodes, all that reaches them, and their classes."""

    graph: ViewBatch
    labels: Tensor


class NodeWorkload(RegularisedGraphWorkload):
    """Classify nodes; a prepared training batch is a `NodeBatch`.

    The best weights are those of the best macro-F1 on the validation nodes. The data is opened when first
    needed.

    Args:
        config: data, model, batches and regularisers.
        task: the graph, in place of the data that `config` names.
    """

    name = "mv-hetgnn"
    primary_metric = "macro_f1"
    selection_metric = "validation_macro_f1"
    metric_names = ("macro_f1", "micro_f1", "validation_macro_f1", "validation_loss")
    config: NodeConfig

    def __init__(self, config: NodeConfig, task: NodeTask | None = None) -> None:
        self.config = config
        self._given = task

    @cached_property
    def task(self) -> NodeTask:
        """Return graph, labels and split."""
        config = self.config
        return self._given or load_node_task(config.data, config.data_root, seed=config.split_seed)

    @cached_property
    def views(self) -> GraphViews:
        """Return the graph that messages travel on."""
        return GraphViews(self.task.graph)

    @property
    def layers(self) -> int:
        """Return how often views are encoded and fused."""
        return self.config.layers or self.task.layers

    def build_model(self) -> nn.Module:
        """Build MV-HetGNN or a baseline, with as many outputs as there are classes."""
        task = self.task
        shape = replace(
            self.config.shape(),
            layers=self.layers,
            num_classes=task.num_classes,
            head_bias=task.head_bias,
            gain=task.gain,
        )
        if self.config.model in BASELINES:
            return build_baseline(self.config.model, self.views, task.target, shape)
        return self._mv_hetgnn(shape)

    def _mv_hetgnn(self, shape: ModelShape) -> MvHetGnn:
        graph = self.task.graph
        return MvHetGnn(
            self.views.input_sizes(), graph.views, graph.inverse, self.task.target, shape
        )

    def training_dataset(self) -> Dataset[int]:
        """Return the places of the training nodes in their list."""
        return Numbers(len(self.task.train))

    def training_batch(self, batch: Tensor, generator: torch.Generator | None) -> NodeBatch:
        """Look up nodes, labels and, for layered blocks, what reaches the nodes."""
        nodes = self.task.train[batch]
        graph = self.describe_batch({self.task.target: nodes}, generator)
        return NodeBatch(graph, self.task.labels[nodes])

    def loss(self, model: nn.Module, batch: NodeBatch) -> LossParts:
        """Compute cross-entropy, a mean over nodes of weighted terms, and what regularises."""
        output: GraphOutput = model(batch.graph)
        assert output.logits is not None
        losses = F.cross_entropy(output.logits, batch.labels, reduction="none")
        if self.config.class_weights == "balanced":
            losses = losses * self._class_weights[batch.labels]
        return LossParts(
            {
                "cross_entropy": losses.mean(),
                **self.regularising_terms(model, output.reconstruction),
            }
        )

    @cached_property
    def _class_weights(self) -> Tensor:
        """Return a weight per class whose mean over the training nodes is 1."""
        counts = torch.bincount(
            self.task.labels[self.task.train], minlength=self.task.num_classes
        ).float()
        present = (counts > 0).sum()
        return counts.sum() / (present * counts.clamp(min=1))

    def measure(self, model: nn.Module) -> Mapping[str, float]:
        """Measure F1 on the test nodes, and F1 and cross-entropy on the validation nodes."""
        task = self.task
        logits = model(self.views.whole).logits
        predicted = logits.argmax(1)

        def scores(nodes: Tensor) -> dict[str, float]:
            return f1_scores(predicted[nodes], task.labels[nodes], task.num_classes)

        return {
            **scores(task.test),
            "validation_macro_f1": scores(task.validation)["macro_f1"],
            "validation_loss": float(
                F.cross_entropy(logits[task.validation], task.labels[task.validation])
            ),
        }

    def final_measures(self, model: nn.Module) -> FinalMeasures:
        """Cluster the embeddings of the test nodes, and place them in the plane."""
        task = self.task
        model.eval()
        with torch.no_grad():
            embeddings = model(self.views.whole).embeddings[task.target][task.test]
        labels = task.labels[task.test]
        metrics = clustering(embeddings, labels, task.num_classes)
        if self.config.support_vectors:
            metrics |= linear_classifier(embeddings, labels)
        return FinalMeasures(metrics=metrics, picture=in_the_plane(embeddings, labels))
