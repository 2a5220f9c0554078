"""Layered blocks: exactly what the whole graph gives, and why NeighborLoader's are not."""

import importlib.util
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from gsdist.errors import ConfigError
from gsdist.workloads.graph.blocks import BlockSampler, in_edges
from gsdist.workloads.graph.model import ModelShape, MvHetGnn
from gsdist.workloads.graph.views import GraphViews
from tests.workloads.graph.graphs import APTPA, PA, small_graph

SHAPE = ModelShape(width=4, num_classes=3)


def build(graph):
    torch.manual_seed(0)
    views = GraphViews(graph)
    model = MvHetGnn(views.input_sizes(), graph.views, graph.inverse, "author", SHAPE)
    with torch.no_grad():
        for encoder in model.encoders:
            encoder.biases.fill_(1.0)  # so that no ReLU hides a difference
    return model.eval(), views


@pytest.mark.parametrize("cap", [None, 9])
@pytest.mark.parametrize("targets", [[2], [5, 0, 3]])
def test_4_blocks_give_what_the_whole_graph_gives(cap, targets):
    model, views = build(small_graph())
    batch = BlockSampler(views, cap).batch({"author": torch.tensor(targets)})
    everyone = model(views.whole).embeddings["author"]
    found = model(batch)
    torch.testing.assert_close(found.embeddings["author"], everyone[targets], rtol=0, atol=1e-5)
    assert len(found.logits) == len(targets)


def test_blocks_touch_only_what_reaches_the_targets():
    _, views = build(small_graph(papers=40, authors=30, terms=25))
    batch = BlockSampler(views, 1).batch({"author": torch.tensor([7])})
    # At most one paper at each of two levels, one term; the target and one author at the far end.
    assert batch.inputs["paper"].shape[0] <= 3  # of both views
    assert batch.inputs["term"].shape[0] == 1
    assert 7 in batch.inputs["author"]


def test_capped_means_are_unbiased_and_repeat_with_the_generator():
    _, views = build(small_graph(papers=40, authors=4))
    sampler = BlockSampler(views, 3)
    exact = views.adjacency[PA].sum(axis=1)[1]
    assert exact > 10

    def mean(seed):
        generator = torch.Generator().manual_seed(seed)
        (hop,) = [
            hop
            for hop in sampler.batch({"author": torch.tensor([1])}, generator)
            .views["author"][0]
            .hops
            if hop.relation == PA
        ]
        weights = hop.mean.to_dense()
        assert weights.count_nonzero() == 3
        assert weights.sum().item() == pytest.approx(exact / (exact + 1), rel=1e-6)
        assert hop.mass.item() == pytest.approx(exact / (exact + 1), rel=1e-6)
        return weights

    assert torch.equal(mean(5), mean(5))


def test_every_neighbour_is_drawn_equally_often():
    graph = small_graph(papers=12, authors=2, terms=2)
    adjacency = GraphViews(graph).adjacency[PA]
    neighbours = adjacency.indices[adjacency.indptr[1] :]
    counts = Counter()
    for seed in range(600):
        offsets, positions = in_edges(adjacency, np.array([1]), 4, seed)
        chosen = adjacency.indices[positions].tolist()
        assert offsets.tolist() == [0, 4] and len(set(chosen)) == 4
        counts.update(chosen)
    assert set(counts) == set(neighbours.tolist())
    expected = 600 * 4 / len(neighbours)
    # Six standard deviations of a binomial count.
    spread = (600 * (4 / len(neighbours)) * (1 - 4 / len(neighbours))) ** 0.5
    assert all(abs(count - expected) < 6 * spread for count in counts.values())


def test_a_cap_below_one_is_refused():
    with pytest.raises(ConfigError, match="at least 1 neighbour"):
        BlockSampler(GraphViews(small_graph()), 0)


# ---- why not PyG's NeighborLoader -----------------------------------------------------------------


def palindrome():
    """Author a0 and a1 wrote p0, which has term t0: on A-P-T-P-A, p0 comes twice."""
    graph = small_graph(views={"author": (APTPA,)})
    for relation in graph.data.edge_types:
        graph.data[relation].edge_index = torch.tensor([[0], [0]])
    graph.data[PA].edge_index = torch.tensor([[0, 0], [0, 1]])
    graph.data["author", "rev_has", "paper"].edge_index = torch.tensor([[0, 1], [0, 0]])
    return graph


def first_seen_only(views, relations, seeds):
    """Sample as NeighborLoader does: at hop k, expand only nodes first seen at hop k - 1.

    Returns the edges found per hop, from the targets outwards.
    """
    seen = {"author": set(seeds)}
    fresh = {"author": set(seeds)}
    hops = []
    for relation in reversed(relations):
        adjacency = views.adjacency[relation]
        found = [
            (int(source), node)
            for node in sorted(fresh.get(relation[2], ()))
            for source in adjacency.indices[adjacency.indptr[node] : adjacency.indptr[node + 1]]
        ]
        sources = {source for source, _ in found}
        fresh = {relation[0]: sources - seen.get(relation[0], set())}
        seen.setdefault(relation[0], set()).update(sources)
        hops.append(found)
    return hops


def test_a_palindromic_metapath_is_cut_short_where_nodes_come_again():
    graph = palindrome()
    model, views = build(graph)
    right = BlockSampler(views).batch({"author": torch.tensor([0])})
    sizes = [hop.mean.to_dense().count_nonzero().item() for hop in right.views["author"][0].hops]
    assert sizes == [2, 1, 1, 1]  # both authors reach p0, p0 reaches t0, t0 p0, p0 a0
    found = first_seen_only(views, APTPA, [0])
    assert [len(hop) for hop in reversed(found)] == [0, 1, 1, 1]  # p0 has lost its authors

    state = model(right).embeddings["author"]
    torch.testing.assert_close(state, model(views.whole).embeddings["author"][[0]])
    cut = palindrome()
    cut.data["author", "rev_has", "paper"].edge_index = torch.empty(2, 0, dtype=torch.int64)
    wrong = model(GraphViews(cut).whole).embeddings["author"][[0]]
    assert (wrong - state).abs().max() > 1e-4


@pytest.mark.skipif(
    not any(importlib.util.find_spec(name) for name in ("pyg_lib", "torch_sparse")),
    reason="NeighborLoader needs pyg-lib or torch-sparse",
)
def test_neighbor_loader_cuts_it_short_in_this_way():
    from torch_geometric.loader import NeighborLoader

    graph = palindrome()
    depth = {relation: [0] * 4 for relation in graph.data.edge_types}
    for hop, relation in enumerate(reversed(APTPA)):
        depth[relation][hop] = -1
    loader = NeighborLoader(
        graph.data, depth, input_nodes=("author", torch.tensor([0])), batch_size=1
    )
    batch = next(iter(loader))
    assert batch["author", "rev_has", "paper"].edge_index.shape[1] == 0


def test_blocks_train_like_the_whole_graph():
    """One step on the same targets moves the parameters alike."""
    gradients = []
    for blocks in (False, True):
        model, views = build(small_graph())
        targets = torch.tensor([1, 4])
        batch = BlockSampler(views).batch({"author": targets})
        output = model(batch) if blocks else model(views.whole)
        logits = output.logits if blocks else output.logits[targets]
        nn.functional.cross_entropy(logits, torch.tensor([0, 2])).backward()
        gradients.append(
            {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)
