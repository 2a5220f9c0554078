"""Graphs that the tests of graph workloads share."""

import numpy as np
import torch

from gsdist.data.graph_task import Graph, add_links, empty_graph, reverse

PA, PT = ("paper", "has", "author"), ("paper", "has", "term")
AP, TP = reverse(PA), reverse(PT)
APA, APTPA = (AP, PA), (AP, PT, TP, PA)


def small_graph(*, views=None, seed=0, authors=6, papers=9, terms=5):
    """Authors without features, papers with sparse and terms with dense ones; author 0 has no paper."""
    generator = np.random.default_rng(seed)
    data = empty_graph()
    data["author"].num_nodes = authors
    data["paper"].x = torch.from_numpy(generator.random((papers, 7)).round().astype(np.float32))
    data["paper"].x = data["paper"].x.to_sparse()
    data["term"].x = torch.from_numpy(generator.random((terms, 3)).astype(np.float32))
    for relation, size, first in ((PA, authors, 1), (PT, terms, 0)):
        pairs = [(paper, generator.integers(first, size)) for paper in range(papers) for _ in "123"]
        add_links(data, relation, np.array(pairs).T)
    return Graph(
        data=data,
        views={"author": (APA, APTPA)} if views is None else views,
        inverse=frozenset({AP, TP}),
    )
