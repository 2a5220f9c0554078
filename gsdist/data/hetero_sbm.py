"""Draw a small heterogeneous graph whose links, and nothing else, tell the classes."""

import numpy as np
import torch
from numpy.typing import NDArray

from gsdist.data.graph_task import (
    Graph,
    NodeTask,
    Relation,
    add_links,
    empty_graph,
    reverse,
    split_nodes,
)

__all__ = ["hetero_sbm"]

_CLASSES = 4
_NOISE_FEATURES = 8
_LINKS_PER_PAPER = {"author": 2, "term": 4, "venue": 1}


def hetero_sbm(
    *,
    seed: int = 0,
    authors: int = 120,
    papers: int = 300,
    terms: int = 80,
    venues: int = 4,
    faithful: float = 0.9,
) -> NodeTask:
    """Draw a stochastic block model of authors, papers, terms and venues; classify the authors.

    All nodes have one of four classes. A paper chooses 2 authors, 4 terms and a venue, each from its own
    class with probability `faithful`, else from all. Authors and papers have features of noise. Half of
    the authors are for training, a sixth for validation.
    """
    generator = np.random.default_rng(seed)
    sizes = {"author": authors, "term": terms, "venue": venues}
    # Every class occurs, however few nodes there are.
    classes = {
        name: generator.permutation(np.arange(size) % _CLASSES) for name, size in sizes.items()
    }
    paper_classes = generator.integers(0, _CLASSES, papers)
    data = empty_graph()
    for name, size in (("author", authors), ("paper", papers)):
        noise = generator.standard_normal((size, _NOISE_FEATURES))
        data[name].x = torch.from_numpy(noise.astype(np.float32))
    data["term"].num_nodes = terms
    data["venue"].num_nodes = venues
    for name, count in _LINKS_PER_PAPER.items():
        edges = _choose(paper_classes, classes[name], count, faithful, generator)
        add_links(data, _relation(name), edges)
    there, back = reverse(_relation("author")), _relation("author")
    train, validation, test = split_nodes(authors, shares=(0.5, 1 / 6), seed=seed)
    return NodeTask(
        graph=Graph(
            data=data,
            views={
                "author": (
                    (there, back),
                    (there, _relation("term"), reverse(_relation("term")), back),
                    (there, _relation("venue"), reverse(_relation("venue")), back),
                )
            },
            inverse=frozenset(reverse(_relation(name)) for name in sizes),
        ),
        target="author",
        labels=torch.from_numpy(classes["author"]),
        num_classes=_CLASSES,
        train=train,
        validation=validation,
        test=test,
    )


def _relation(name: str) -> Relation:
    return ("paper", "has", name)


def _choose(
    own: NDArray[np.int64],
    classes: NDArray[np.int64],
    count: int,
    faithful: float,
    generator: np.random.Generator,
) -> NDArray[np.int64]:
    """Return edges (paper, other), `count` draws for every paper."""
    members = [np.flatnonzero(classes == label) for label in range(_CLASSES)]
    pairs = []
    for paper, label in enumerate(own):
        for _ in range(count):
            kind = members[label] if generator.random() < faithful else np.arange(len(classes))
            pairs.append((paper, generator.choice(kind)))
    return np.array(pairs, np.int64).T
