"""Train on a graph with penalties that depend on parameters only and so never travel."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from gsdist.data.graph_task import Relation
from gsdist.workloads.contract import Workload
from gsdist.workloads.graph.blocks import BlockSampler
from gsdist.workloads.graph.config import GraphConfig
from gsdist.workloads.graph.model import MvHetGnn
from gsdist.workloads.graph.views import GraphViews, ViewBatch

__all__ = ["Numbers", "RegularisedGraphWorkload"]


class Numbers(Dataset[int]):
    """Give the numbers 0 to count - 1."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> int:
        return index


class RegularisedGraphWorkload(Workload):
    """Hold what node classification and link prediction share.

    The evaluation set is one item, the whole graph, so that one rank evaluates: scores like F1 and AUC are
    no means over nodes. Subclasses name their metrics in `metric_names`, measure in `measure` and make
    batches in `training_batch`.
    """

    config: GraphConfig
    metric_names: tuple[str, ...]

    @abstractmethod
    def measure(self, model: nn.Module) -> Mapping[str, float]:
        """Measure `metric_names` on the whole graph, without gradients, in evaluation mode."""

    @abstractmethod
    def training_batch(self, batch: Tensor, generator: torch.Generator | None) -> Any:
        """Return the prepared batch of places in the training set, int64 `(n,)`."""

    @property
    @abstractmethod
    def views(self) -> GraphViews:
        """Return the graph that messages travel on."""

    @property
    def layers(self) -> int:
        """Return how often views are encoded and fused."""
        return self.config.layers or 1

    def evaluation_dataset(self) -> Dataset[Any]:
        """Return one item, which stands for the whole graph."""
        return Numbers(1)

    def prepare_batch(
        self, batch: Tensor, *, training: bool, generator: torch.Generator | None = None
    ) -> Any:
        """Prepare a training batch; the evaluation item stays as it is."""
        return self.training_batch(batch, generator) if training else batch

    def evaluate(
        self, model: nn.Module, batches: Iterable[Any]
    ) -> Mapping[str, tuple[float, float]]:
        """Measure the whole graph on the rank that has been given it."""
        if not list(batches):
            return {name: (0.0, 0.0) for name in self.metric_names}
        was_training = model.training
        model.eval()
        with torch.no_grad():
            measured = self.measure(model)
        model.train(was_training)
        return {name: (measured[name], 1.0) for name in self.metric_names}

    def replicated_loss(self, model: nn.Module) -> Tensor | None:
        """Return the weighted orthogonality of the encoders plus the L2 penalty of all parameters.

        The orthogonality's gradient is larger than all others by orders of magnitude from the first step
        on. In the exchange it would own the sketch.
        """
        penalty = self.config.weight_penalty
        terms = []
        if penalty:
            squares = [p.square().sum() for p in model.parameters() if p.requires_grad]
            terms.append(0.5 * penalty * torch.stack(squares).sum())
        if not self.config.exchange_regulariser:
            terms += self.orthogonality(model).values()
        return torch.stack(terms).sum() if terms else None

    def orthogonality(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the weighted penalty, or nothing for a model or a weight that has none."""
        own = getattr(model, "module", model)  # inside the DDP wrapper
        if isinstance(own, MvHetGnn) and self.config.orthogonality:
            return {"orthogonality": self.config.orthogonality * own.orthogonality()}
        return {}

    def regularising_terms(
        self, model: nn.Module, reconstruction: Tensor | None
    ) -> dict[str, Tensor]:
        """Return the terms of the loss that every task adds to its own."""
        terms = {}
        if reconstruction is not None:
            terms["reconstruction"] = self.config.reconstruction * reconstruction
        if self.config.exchange_regulariser:
            terms |= self.orthogonality(model)
        return terms

    def describe_batch(
        self,
        nodes: Mapping[str, Tensor],
        generator: torch.Generator | None,
        removed: Mapping[Relation, Tensor] | None = None,
    ) -> ViewBatch:
        """Return the batch that describes these nodes, in order, with some edges hidden."""
        if self.config.blocks == "layered":
            sampler = BlockSampler(self.views, self.config.neighbours)
            return sampler.batch(nodes, generator, removed)
        whole = self.views.whole_without(removed) if removed else self.views.whole
        return ViewBatch(
            inputs=whole.inputs,
            views={
                name: views
                for name, views in whole.views.items()
                if name in nodes or self.layers > 1
            },
            wanted=nodes,
        )
