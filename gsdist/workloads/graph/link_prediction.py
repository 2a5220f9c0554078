"""Predict links of a heterogeneous graph from the embeddings of their ends."""

from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from gsdist.data.graph_task import LinkTask
from gsdist.data.graphs import load_link_task
from gsdist.workloads.contract import LossParts
from gsdist.workloads.graph.config import GraphConfig
from gsdist.workloads.graph.evaluation import link_scores
from gsdist.workloads.graph.model import GraphOutput, MvHetGnn
from gsdist.workloads.graph.regularised import Numbers, RegularisedGraphWorkload
from gsdist.workloads.graph.views import GraphViews, ViewBatch

__all__ = ["LinkBatch", "LinkWorkload"]


class LinkBatch(NamedTuple):
    """Hold links, pairs that are none, and all that reaches their ends."""

    graph: ViewBatch
    positive: Tensor
    """int64 `(2, n)`: rows of the described source and destination nodes."""
    negative: Tensor


class LinkWorkload(RegularisedGraphWorkload):
    """Score pairs of nodes by products of embeddings; a prepared training batch is a `LinkBatch`.

    Messages travel on training links only, and never on those of the batch at hand: else the model would
    be asked what it has just been told. The best weights are those of the best AUC on validation links.

    Args:
        config: data, model, batches and regularisers.
        task: the graph, in place of the data that `config` names.
    """

    name = "mv-hetgnn-links"
    primary_metric = "auc"
    selection_metric = "validation_auc"
    metric_names = ("auc", "ap", "validation_auc", "validation_ap")

    def __init__(self, config: GraphConfig, task: LinkTask | None = None) -> None:
        self.config = config
        self._given = task

    @cached_property
    def task(self) -> LinkTask:
        """Return graph and links."""
        config = self.config
        return self._given or load_link_task(config.data, config.data_root, seed=config.split_seed)

    @cached_property
    def views(self) -> GraphViews:
        """Return the graph that messages travel on."""
        return GraphViews(self.task.graph)

    def build_model(self) -> nn.Module:
        """Build MV-HetGNN without a head."""
        graph = self.task.graph
        return MvHetGnn(
            self.views.input_sizes(), graph.views, graph.inverse, None, self.config.shape()
        )

    def training_dataset(self) -> Dataset[int]:
        """Return the places of the training links in their list."""
        return Numbers(self.task.train.shape[1])

    def training_batch(self, batch: Tensor, generator: torch.Generator | None) -> LinkBatch:
        """Draw a pair that is no training link per link, and hide the links from messages.

        Draws the pairs first, then what `BlockSampler` draws.
        """
        task = self.task
        links = task.train[:, batch]
        pairs = self._non_links(links.shape[1], generator)
        source, _, destination = task.relation
        both = torch.cat([links, pairs], dim=1)
        ends = [torch.unique(row, return_inverse=True) for row in both]
        if source == destination:
            nodes, places = torch.unique(both, return_inverse=True)
            ends = [(nodes, row) for row in places]
        graph = self.describe_batch(
            {source: ends[0][0], destination: ends[1][0]}, generator, {task.relation: links}
        )
        positive, negative = torch.stack([ends[0][1], ends[1][1]]).chunk(2, dim=1)
        return LinkBatch(graph, positive, negative)

    def _non_links(self, count: int, generator: torch.Generator | None) -> Tensor:
        """Draw pairs uniformly; those that are training links are drawn anew."""
        sizes = [self.views.sizes[self.task.relation[end]] for end in (0, 2)]
        pairs = torch.empty(2, 0, dtype=torch.int64)
        while pairs.shape[1] < count:
            missing = count - pairs.shape[1]
            drawn = torch.stack(
                [torch.randint(size, (missing,), generator=generator) for size in sizes]
            )
            keys = drawn[0] * sizes[1] + drawn[1]
            pairs = torch.cat([pairs, drawn[:, ~torch.isin(keys, self._link_keys)]], dim=1)
        return pairs

    @cached_property
    def _link_keys(self) -> Tensor:
        links = self.task.train
        return links[0] * self.views.sizes[self.task.relation[2]] + links[1]

    def loss(self, model: nn.Module, batch: LinkBatch) -> LossParts:
        """Compute the logistic loss of links and pairs, and what regularises."""
        output: GraphOutput = model(batch.graph)
        positive = self.scores(output, batch.positive)
        negative = self.scores(output, batch.negative)
        value = -(F.logsigmoid(positive) + F.logsigmoid(-negative)).mean()
        return LossParts(
            {"logistic": value, **self.regularising_terms(model, output.reconstruction)}
        )

    def scores(self, output: GraphOutput, pairs: Tensor) -> Tensor:
        """Return the score of each pair of described rows, float32 `(n,)`."""
        source, _, destination = self.task.relation
        sources, destinations = output.embeddings[source], output.embeddings[destination]
        return (sources[pairs[0]] * destinations[pairs[1]]).sum(1)

    def measure(self, model: nn.Module) -> Mapping[str, float]:
        """Measure AUC and average precision on test and validation links and as many other pairs."""
        task = self.task
        output = model(self.views.whole)

        def measured(links: Tensor, others: Tensor) -> dict[str, float]:
            return link_scores(self.scores(output, links), self.scores(output, others))

        validation = measured(task.validation, task.validation_negatives)
        return {
            **measured(task.test, task.test_negatives),
            **{f"validation_{name}": value for name, value in validation.items()},
        }
