"""Time a training step on a graph of the size of DBLP, three ways."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.graph.released import as_released
from gsdist.data.graph_task import (
    Graph,
    Metapath,
    Relation,
    add_links,
    empty_graph,
    multi_hot,
    reverse,
)
from gsdist.workloads.graph.blocks import BlockSampler
from gsdist.workloads.graph.model import ModelShape, MvHetGnn
from gsdist.workloads.graph.views import GraphViews, ViewBatch

__all__ = ["time_steps"]

_NODES = {"author": 4057, "paper": 14328, "term": 7723, "conference": 20}
_LINKS = {"author": 19645, "term": 85810, "conference": 14328}
_FEATURES = {"author": (334, 48810), "paper": (4231, 95030)}
"""Columns and entries that are not zero."""
_BATCH = 16
"""Target nodes per step, as the authors train."""


def dblp_like(seed: int = 0) -> Graph:
    """Draw a random graph with the numbers of nodes, links and features of DBLP."""
    generator = np.random.default_rng(seed)
    data = empty_graph()
    for name, size in _NODES.items():
        if name in _FEATURES:
            columns, entries = _FEATURES[name]
            data[name].x = multi_hot(
                generator.integers(0, size, entries),
                generator.integers(0, columns, entries),
                (size, columns),
            )
        else:
            data[name].num_nodes = size
    papers = _NODES["paper"]
    for name, count in _LINKS.items():
        keys = generator.choice(papers * _NODES[name], count, replace=False)
        add_links(data, _relation(name), np.stack([keys // _NODES[name], keys % _NODES[name]]))
    out, home = reverse(_relation("author")), _relation("author")
    views: tuple[Metapath, ...] = (
        (out, home),
        *(
            (out, _relation(name), reverse(_relation(name)), home)
            for name in ("term", "conference")
        ),
    )
    inverse = frozenset(reverse(_relation(name)) for name in _LINKS)
    return Graph(data=data, views={"author": views}, inverse=inverse)


def time_steps(repetitions: int) -> dict[str, Any]:
    """Return median milliseconds per step (batch, forward, backward, Adam) of each way, and ratios.

    By the wall clock and by the process's own clock, which a busy machine disturbs less; with one thread
    they agree on an idle one. The ratios are of the latter.
    """
    graph = dblp_like()
    views = GraphViews(graph)
    sampler = BlockSampler(views)
    released = as_released(views.whole, views.sizes)
    batches: dict[str, Callable[[torch.Tensor], ViewBatch]] = {
        "released: dense identity, edge by edge": lambda nodes: replace(
            released, wanted={"author": nodes}
        ),
        "embeddings and sparse features, edge by edge": lambda nodes: replace(
            released, inputs=views.whole.inputs, wanted={"author": nodes}
        ),
        "gsdist, whole graph": lambda nodes: replace(views.whole, wanted={"author": nodes}),
        "gsdist, layered blocks": lambda nodes: sampler.batch({"author": nodes}),
    }
    seconds = {name: _time(views, make, repetitions) for name, make in batches.items()}
    medians = {
        name: [1e3 * statistics.median(clock) for clock in zip(*found, strict=True)]
        for name, found in seconds.items()
    }
    _, slowest = next(iter(medians.values()))
    return {
        name: {
            "milliseconds": wall,
            "processor_milliseconds": own,
            "speedup": slowest / own,
        }
        for name, (wall, own) in medians.items()
    }


def _time(
    views: GraphViews, make: Callable[[torch.Tensor], ViewBatch], repetitions: int
) -> list[tuple[float, float]]:
    """Return seconds by the wall clock and by the process's clock, per step."""
    torch.manual_seed(0)
    graph = views.graph
    shape = ModelShape(num_classes=4)
    model = MvHetGnn(views.input_sizes(), graph.views, graph.inverse, "author", shape)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    labels = torch.arange(_BATCH) % 4
    found = []
    for step in range(repetitions + 1):
        nodes = torch.randperm(_NODES["author"])[:_BATCH]
        begun, own = time.perf_counter(), time.process_time()
        output = model(make(nodes))
        loss = F.cross_entropy(output.logits, labels) + 0.1 * output.reconstruction
        (loss + 100 * model.orthogonality()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step:  # the first compiles and allocates
            found.append((time.perf_counter() - begun, time.process_time() - own))
    return found


def _relation(name: str) -> Relation:
    return ("paper", "has", name)
