"""Link prediction: nothing leaks, pairs are no links, and scores mean something."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from gsdist.data.graph_task import LinkTask, add_links, reverse, split_links
from gsdist.data.hetero_sbm import hetero_sbm
from gsdist.errors import ConfigError
from gsdist.workloads.graph import GraphConfig, LinkWorkload
from tests.workloads.graph.graphs import APA, PA, small_graph

CONFIG = GraphConfig(input_dropout=0.0, hop_dropout=0.0, width=8)
PAP = (PA, reverse(PA))


def link_task(graph, seed=0):
    links = graph.data[PA].edge_index
    sizes = (graph.data["paper"].num_nodes, graph.data["author"].num_nodes)
    parts, negatives = split_links(links, sizes, shares=(0.1, 0.2), seed=seed)
    add_links(graph.data, PA, parts[0].numpy())
    return LinkTask(
        graph=replace(graph, views={"author": (APA,), "paper": (PAP,)}),
        relation=PA,
        train=parts[0],
        validation=parts[1],
        test=parts[2],
        validation_negatives=negatives[0],
        test_negatives=negatives[1],
    )


def keys(pairs):
    return set(map(tuple, pairs.T.tolist()))


def test_the_split_is_disjoint_and_negatives_are_no_links_of_any_part():
    graph = small_graph(papers=30, authors=20)
    everything = keys(graph.data[PA].edge_index)
    task = link_task(graph)
    parts = [keys(part) for part in (task.train, task.validation, task.test)]
    assert set.union(*parts) == everything
    assert sum(map(len, parts)) == len(everything)
    assert keys(graph.data[PA].edge_index) == parts[0]
    for links, others in (
        (task.validation, task.validation_negatives),
        (task.test, task.test_negatives),
    ):
        assert links.shape == others.shape
        assert not keys(others) & everything


def test_11_held_out_links_change_no_embedding():
    """Two worlds that differ in a held-out link only."""
    task = link_task(small_graph(papers=30, authors=20))
    other = replace(task, test=task.test[:, 1:], test_negatives=task.test_negatives.flip(0))
    outputs = []
    for one in (task, other):
        work = LinkWorkload(CONFIG, one)
        torch.manual_seed(0)
        outputs.append(work.build_model()(work.views.whole).embeddings)
    for name, embedding in outputs[0].items():
        assert torch.equal(embedding, outputs[1][name])


@pytest.mark.parametrize("blocks", ["whole", "layered"])
def test_11_hiding_a_link_changes_what_it_reaches_and_nothing_else(blocks):
    work = LinkWorkload(
        replace(CONFIG, blocks=blocks), link_task(small_graph(papers=30, authors=20))
    )
    torch.manual_seed(0)
    model = work.build_model()
    with torch.no_grad():
        model.encoders[0].biases.fill_(1.0)  # so that no ReLU hides a difference
    paper, author = work.task.train[:, 0].tolist()
    everyone = {name: torch.arange(work.views.sizes[name]) for name in work.task.graph.views}
    plain, hidden = (
        model(work.describe_batch(everyone, None, removed)).embeddings
        for removed in ({}, {PA: torch.tensor([[paper], [author]])})
    )
    links = keys(work.task.train)
    # Both views have two hops: the ends of the link, and who shares the other end with them.
    reached = {
        "author": {a for p, a in links if p == paper},
        "paper": {p for p, a in links if a == author},
    }
    for name, embedding in plain.items():
        changed = (embedding - hidden[name]).abs().amax(1) > 1e-7
        assert set(changed.nonzero().flatten().tolist()) == reached[name]


def test_batches_hide_their_links_and_draw_pairs_that_are_none():
    work = LinkWorkload(CONFIG, link_task(small_graph(papers=30, authors=20)))
    chosen = torch.arange(5)
    generator = torch.Generator().manual_seed(0)
    batch = work.prepare_batch(chosen, training=True, generator=generator)
    nodes = batch.graph.wanted
    ends = [torch.stack([nodes["paper"][p[0]], nodes["author"][p[1]]]) for p in batch[1:]]
    assert torch.equal(ends[0], work.task.train[:, chosen])
    assert not keys(ends[1]) & keys(work.task.train)
    assert ends[1].shape == ends[0].shape
    for view in batch.graph.views["author"]:
        hop = next(hop for hop in view.hops if hop.relation == PA)
        weights = hop.mean.to_dense()
        assert (weights[ends[0][1], ends[0][0]] == 0).all()
        assert weights.count_nonzero() == len(keys(work.task.train)) - 5


def test_loss_is_the_logistic_loss_of_products():
    work = LinkWorkload(CONFIG, link_task(small_graph(papers=30, authors=20)))
    model = work.build_model()
    batch = work.prepare_batch(torch.arange(6), training=True, generator=torch.Generator())
    output = model(batch.graph)
    scores = output.embeddings["paper"] @ output.embeddings["author"].T
    positive, negative = (scores[p[0], p[1]] for p in batch[1:])
    expected = F.softplus(-positive).mean() + F.softplus(negative).mean()
    parts = work.loss(model, batch)
    torch.testing.assert_close(parts["logistic"], expected)
    torch.testing.assert_close(parts["reconstruction"], 0.1 * output.reconstruction)


def test_it_predicts_links_of_the_block_model():
    task = link_task(hetero_sbm(faithful=1.0).graph)
    views = {
        "author": (APA,),
        "paper": (
            PAP,
            *((("paper", "has", n), (n, "rev_has", "paper")) for n in ("term", "venue")),
        ),
    }
    task = replace(task, graph=replace(task.graph, views=views))
    work = LinkWorkload(replace(CONFIG, weight_penalty=1e-3), task)
    torch.manual_seed(0)
    model = work.build_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    generator = torch.Generator().manual_seed(0)
    everything = torch.arange(task.train.shape[1])
    for _ in range(60):
        batch = work.prepare_batch(everything[::2], training=True, generator=generator)
        (work.loss(model, batch).total + work.replicated_loss(model)).backward()
        optimizer.step()
        optimizer.zero_grad()
        everything = everything.roll(1)
    measured = work.evaluate(model, [None])
    # A pair of the same class is a link or not by chance: nobody reaches more than 7/8.
    assert measured["auc"][0] > 0.62
    assert set(measured) == {"auc", "ap", "validation_auc", "validation_ap"}


def test_data_without_links_is_refused():
    with pytest.raises(ConfigError, match="films and last-fm have"):
        LinkWorkload(GraphConfig(data="hetero-sbm")).build_model()
