"""MV-HetGNN: hand-computed states, and what must hold for every graph (specification, section 5.5)."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gsdist.data.graph_task import Graph, add_links, empty_graph, reverse
from gsdist.errors import ConfigError
from gsdist.workloads.graph.dropout import dropout
from gsdist.workloads.graph.fusion import AutoFusion, off_diagonal_mass
from gsdist.workloads.graph.model import ModelShape, MvHetGnn, ViewEncoder
from gsdist.workloads.graph.sparse import SparseMatrix
from gsdist.workloads.graph.transform import TypeTransform
from gsdist.workloads.graph.views import GraphViews
from tests.workloads.graph.graphs import AP, APA, APTPA, PA, PT, TP, small_graph

WIDTH = 4
PLAIN = ModelShape(width=WIDTH, input_dropout=0.0, hop_dropout=0.0, num_classes=3)


def build(graph, shape=PLAIN, seed=0):
    torch.manual_seed(seed)
    views = GraphViews(graph)
    return MvHetGnn(views.input_sizes(), graph.views, graph.inverse, "author", shape), views


def encoder(relations, inverse, shape=PLAIN):
    torch.manual_seed(1)
    return ViewEncoder(relations, inverse, shape)


# ---- hand values ----------------------------------------------------------------------------------


def test_states_of_the_worked_example():
    """Papers p0 {a0, a1} and p1 {a1}; view author > paper > author; both weights the identity."""
    data = empty_graph()
    data["author"].num_nodes, data["paper"].num_nodes = 2, 2
    add_links(data, PA, np.array([[0, 0, 1], [0, 1, 1]]))
    graph = Graph(data=data, views={"author": (APA,)}, inverse=frozenset({AP}))
    batch = GraphViews(graph).whole
    hops = encoder([AP, PA], graph.inverse, replace(PLAIN, width=2))
    with torch.no_grad():
        hops.translations.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))  # of AP, of PA
        hops.weights.copy_(torch.eye(2).expand(2, 2, 2))
    states = {
        "author": torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        "paper": torch.tensor([[0.0, 0.0], [1.0, 1.0]]),
    }
    encoding = hops(states, batch.views["author"][0])
    expected = torch.tensor([[0.5, 0.0], [5 / 18, 1 / 3]])
    torch.testing.assert_close(encoding, expected, rtol=0, atol=1e-6)


def worked_fusion():
    fusion = AutoFusion(2, 2)
    outer = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]) / math.sqrt(2)
    with torch.no_grad():
        fusion.inner_encoders.copy_(torch.eye(2).expand(2, 2, 2))
        fusion.inner_decoders.copy_(torch.eye(2).expand(2, 2, 2))
        fusion.outer_encoder.copy_(outer)
        fusion.outer_decoder.copy_(outer.T)
    return fusion


def test_fusion_of_the_worked_example():
    views = torch.tensor([[[0.5, 0.0], [5 / 18, 1 / 3]], [[0.2, -0.4], [-0.1, 0.3]]])
    fusion = worked_fusion()
    fused, loss = fusion(views)
    expected = torch.tensor([[0.120434, 0.141421], [0.408551, 0.168412]])
    torch.testing.assert_close(fused, expected, rtol=0, atol=2e-6)
    assert 0.1 * loss.item() == pytest.approx(0.00391397, abs=2e-8)
    assert fusion.orthogonality().item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        fusion.outer_encoder[0, 1] = 0.1
    assert 100 * fusion.orthogonality().item() == pytest.approx(14.1421, abs=1e-4)


# ---- parameter counts -----------------------------------------------------------------------------


def chain(*types):
    return tuple((a, "to", b) for a, b in pairwise(types))


APA_, APTPA_, APCPA = chain(*"apa"), chain(*"aptpa"), chain(*"apcpa")
LAST_FM = {
    "u": (chain(*"uau"), chain(*"uatau"), chain(*"uu")),
    "a": (chain(*"aua"), chain(*"ata"), chain(*"auua")),
}
IMDB = {
    "m": (chain(*"mdm"), chain(*"mam")),
    "d": (chain(*"dmd"), chain(*"dmamd")),
    "a": (chain(*"ama"), chain(*"amdma")),
}


@pytest.mark.parametrize(
    ("inputs", "views", "inverse", "shape", "expected"),
    [
        (
            {"a": 334, "p": 4231, "t": 7723, "c": 20},
            {"a": (APA_, APTPA_, APCPA)},
            {("a", "to", "p"), ("t", "to", "p"), ("c", "to", "p")},
            ModelShape(num_classes=4),
            846_084,
        ),
        (
            {"m": 3066, "d": 2081, "a": 5257},
            IMDB,
            {("m", "to", "d"), ("a", "to", "m")},
            ModelShape(num_classes=3, layers=2, head_bias=False),
            880_000,
        ),
        (
            {"u": 1892, "a": 17632, "t": 1088},
            LAST_FM,
            {("u", "to", "a"), ("t", "to", "a")},
            ModelShape(),
            1_426_304,
        ),
    ],
)
def test_parameter_counts_are_the_published_ones(inputs, views, inverse, shape, expected):
    model = MvHetGnn(inputs, views, frozenset(inverse), next(iter(views)), shape)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


# ---- invariants, numbered as in the specification ---------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_1_relabelling_permutes_and_duplicates_change_nothing(seed):
    graph = small_graph(seed=seed)
    model, views = build(graph)
    model.eval()
    before = model(views.whole).logits
    generator = torch.Generator().manual_seed(seed)
    order = {
        name: torch.randperm(views.sizes[name], generator=generator) for name in views.node_types
    }
    place = {name: torch.argsort(own) for name, own in order.items()}
    data = empty_graph()
    data["author"].num_nodes = len(order["author"])
    data["paper"].x = graph.data["paper"].x.to_dense()[order["paper"]]
    data["term"].x = graph.data["term"].x[order["term"]]
    for relation in views.relations:
        source, destination = graph.data[relation].edge_index
        edges = torch.stack([place[relation[0]][source], place[relation[2]][destination]])
        edges = edges[:, torch.randperm(edges.shape[1], generator=generator)]
        data[relation].edge_index = torch.cat([edges, edges[:, :3]], dim=1)
    with torch.no_grad():
        # Authors have no features: their rows of the weight matrix are renamed with them.
        weight = model.transforms["author"].weight
        weight.copy_(weight[order["author"]])
    after = model(GraphViews(replace(graph, data=data)).whole).logits
    torch.testing.assert_close(after, before[order["author"]], rtol=1e-5, atol=1e-6)


def test_2_the_aggregate_of_equal_sources_is_degree_over_degree_plus_one():
    views = GraphViews(small_graph())
    (hop,) = [hop for hop in views.whole.views["author"][0].hops if hop.relation == PA]
    degrees = torch.bincount(views.graph.data[PA].edge_index[1], minlength=6).float()[:, None]
    constant = torch.full((9, WIDTH), 3.0)
    expected = (3 * degrees / (degrees + 1)).expand(6, WIDTH)
    torch.testing.assert_close(hop.mean @ constant, expected)
    torch.testing.assert_close(hop.mass, degrees / (degrees + 1))
    assert degrees[0] == 0


def test_3_without_weights_or_neighbours_the_own_features_remain():
    graph = small_graph()
    views = GraphViews(graph)
    states = {name: torch.randn(size, WIDTH) for name, size in views.sizes.items()}
    hops = encoder(views.relations, graph.inverse)
    short, long = views.whole.views["author"]
    with torch.no_grad():
        hops.biases.normal_()
        isolated = states["author"][0] + F.relu(hops.biases[0])  # PA is no inverse relation
        torch.testing.assert_close(hops(states, short)[0], isolated / 3)
        torch.testing.assert_close(hops(states, long)[0], isolated / 5)
        hops.weights.zero_()
        hops.biases.zero_()
        torch.testing.assert_close(hops(states, short), states["author"] / 3)
        torch.testing.assert_close(hops(states, long), states["author"] / 5)


def test_4_embeddings_do_not_depend_on_batch_mates():
    graph = small_graph()
    model, views = build(graph)
    model.eval()
    everyone = model(views.whole).embeddings["author"]
    wanted = torch.tensor([4, 1])
    some = model(replace(views.whole, wanted={"author": wanted})).embeddings["author"]
    torch.testing.assert_close(some, everyone[wanted])


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ({"author": ((AP, PT),)}, "must end in the node type it describes, 'author'"),
        ({"author": ((AP, TP, PA),)}, "does not chain.*ends in 'paper'.*begins at 'term'"),
        ({"author": ((("x", "to", "author"),),)}, "no relation"),
        ({"author": ()}, "at least one metapath"),
    ],
)
def test_5_views_that_do_not_chain_are_refused(views, message):
    with pytest.raises(ConfigError, match=message):
        GraphViews(small_graph(views=views))


def test_5_permuting_views_with_their_weights_changes_nothing():
    torch.manual_seed(0)
    fusion, other = AutoFusion(3, WIDTH), AutoFusion(3, WIDTH)
    assert fusion.outer_encoder.shape == (3 * WIDTH, WIDTH)
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        other.inner_encoders.copy_(fusion.inner_encoders[order])
        other.inner_decoders.copy_(fusion.inner_decoders[order])
        blocks = fusion.outer_encoder.view(3, WIDTH, WIDTH)
        other.outer_encoder.copy_(blocks[order].reshape(-1, WIDTH))
        columns = fusion.outer_decoder.view(WIDTH, 3, WIDTH)
        other.outer_decoder.copy_(columns[:, order].reshape(WIDTH, -1))
    views = torch.randn(3, 7, WIDTH)
    for one, two in zip(fusion(views), other(views[order]), strict=True):
        torch.testing.assert_close(one, two)


@settings(max_examples=20, deadline=None)
@given(
    st.floats(0.1, 10),
    st.permutations(range(WIDTH)),
    st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_6_orthogonality_ignores_order_and_signs_and_grows_with_the_square(scale, order, flips):
    weights = torch.randn(WIDTH + 3, WIDTH, generator=torch.Generator().manual_seed(0))
    mass = off_diagonal_mass(weights)
    signs = torch.where(torch.tensor(flips), -1.0, 1.0)
    torch.testing.assert_close(off_diagonal_mass(weights[:, order] * signs), mass)
    torch.testing.assert_close(off_diagonal_mass(scale * weights), scale**2 * mass)
    assert mass > 0


def test_6_orthogonal_initialisation_has_next_to_no_penalty():
    torch.manual_seed(0)
    fusion = AutoFusion(3, 64)
    for matrix in (*fusion.inner_encoders, fusion.outer_encoder):
        assert 0 <= 100 * off_diagonal_mass(matrix) < 0.02


def test_7_a_single_view_with_identities_outside_is_rebuilt_from_its_code():
    torch.manual_seed(0)
    fusion = AutoFusion(1, WIDTH)
    with torch.no_grad():
        fusion.outer_encoder.copy_(torch.eye(WIDTH))
        fusion.outer_decoder.copy_(torch.eye(WIDTH))
    views = torch.randn(1, 5, WIDTH)
    fused, loss = fusion(views)
    decoded = F.relu(F.elu(views @ fusion.inner_encoders) @ fusion.inner_decoders)
    torch.testing.assert_close(loss, 0.5 * F.mse_loss(decoded, views))
    (fused.sum() + fusion.orthogonality()).backward()
    assert fusion.inner_decoders.grad is None and fusion.outer_decoder.grad is None


@pytest.mark.parametrize("nodes", [None, torch.tensor([3, 0, 3])])
def test_8_a_node_without_features_has_the_identity_as_features(nodes):
    torch.manual_seed(0)
    transform = TypeTransform(5, WIDTH, 0.0)
    linear = nn.Linear(5, WIDTH)
    linear.load_state_dict({"weight": transform.weight.data.T, "bias": transform.bias.data})
    rows = torch.eye(5) if nodes is None else torch.eye(5)[nodes]
    expected, found = F.relu(linear(rows)), transform(nodes)
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(found)
    (found * direction).sum().backward()
    (expected * direction).sum().backward()
    torch.testing.assert_close(transform.weight.grad, linear.weight.grad.T)
    torch.testing.assert_close(transform.bias.grad, linear.bias.grad)


def test_8_sparse_and_dense_features_give_the_same():
    torch.manual_seed(0)
    dense = torch.rand(6, 5).round() * torch.rand(6, 5)
    sparse = SparseMatrix(scipy.sparse.coo_array(dense.numpy()))
    torch.testing.assert_close(SparseMatrix.from_torch(dense.to_sparse()).to_dense(), dense)
    torch.testing.assert_close(sparse.rows(torch.tensor([4, 1])).to_dense(), dense[[4, 1]])
    gradients = []
    for features in (dense, sparse):
        torch.manual_seed(1)
        transform = TypeTransform(5, WIDTH, 0.0)
        transform(features).square().sum().backward()
        gradients.append(transform.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("layers", [1, 2])
def test_9_every_parameter_has_a_gradient(layers):
    types = {"author": (APA,), "paper": ((PA, AP), (PT, TP)), "term": ((TP, PT),)}
    graph = small_graph(views=None if layers == 1 else types)
    model, views = build(graph, replace(PLAIN, layers=layers))
    output = model(views.whole)
    F.cross_entropy(output.logits, torch.arange(6) % 3).backward(retain_graph=True)
    output.reconstruction.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_two_layers_need_views_of_every_type():
    with pytest.raises(ConfigError, match=r"layers=2.*\['paper', 'term'\]"):
        build(small_graph(), replace(PLAIN, layers=2))


def test_12_the_same_seed_gives_the_same_losses():
    def losses():
        graph = small_graph()
        model, views = build(graph, ModelShape(width=WIDTH, num_classes=3))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        found = []
        for _ in range(5):
            output = model(views.whole)
            loss = F.cross_entropy(output.logits, torch.arange(6) % 3) + output.reconstruction
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    assert losses() == losses()
    assert len(set(losses())) == 5


def test_weights_of_edges_count_as_so_many_edges():
    graph = small_graph()
    edges = graph.data[PA].edge_index
    graph.data[PA].weight = torch.full((edges.shape[1],), 2.0)
    (hop,) = [hop for hop in GraphViews(graph).whole.views["author"][0].hops if hop.relation == PA]
    degrees = 2 * torch.bincount(edges[1], minlength=6).float()[:, None]
    torch.testing.assert_close(hop.mass, degrees / (degrees + 1))
    torch.testing.assert_close(hop.mean.to_dense().sum(1, keepdim=True), hop.mass)


def test_hops_within_one_type_keep_the_features_of_both_ends():
    """The released code overwrites them (specification 1.7); here sources and destinations differ."""
    friends = ("user", "knows", "user")
    data = empty_graph()
    data["user"].num_nodes = 2
    data[friends].edge_index = torch.tensor([[0, 1], [1, 0]])
    graph = Graph(data=data, views={"user": ((friends,),)}, inverse=frozenset({reverse(friends)}))
    hops = encoder([friends], graph.inverse)
    with torch.no_grad():
        hops.weights.copy_(torch.eye(WIDTH)[None])
        hops.translations.zero_()
    states = {"user": torch.rand(2, WIDTH)}
    found = hops(states, GraphViews(graph).whole.views["user"][0])
    torch.testing.assert_close(found, (states["user"] + states["user"].flip(0) / 2) / 2)


def test_long_views_are_described_without_their_instances():
    """APTPA by matrices equals a walk over typed neighbours, node by node."""
    graph = small_graph(views={"author": (APTPA,)})
    views = GraphViews(graph)
    hops = encoder(views.relations, graph.inverse)
    states = {name: torch.randn(size, WIDTH) for name, size in views.sizes.items()}
    found = hops(states, views.whole.views["author"][0])

    def state(node, level):
        relation = APTPA[level - 1]
        source, destination = graph.data[relation].edge_index
        neighbours = source[destination == node].tolist()
        inner = [
            (states["author"][n] if level == 1 else state(n, level - 1))
            + hops.translations[views.relations.index(relation)]
            for n in neighbours
        ]
        message = sum(inner, torch.zeros(WIDTH)) / (len(neighbours) + 1)
        kind = int(relation in graph.inverse)
        return states[relation[2]][node] + F.relu(message @ hops.weights[kind] + hops.biases[kind])

    expected = torch.stack([state(node, 4) / 5 for node in range(6)])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_dropout_keeps_means_and_drops_the_share_that_was_asked_for():
    torch.manual_seed(0)
    values = torch.full((401, 251), 2.0, requires_grad=True)
    found = dropout(values, 0.3, True)
    kept = found != 0
    # Six standard deviations of a share of 100,651 draws.
    assert kept.float().mean().item() == pytest.approx(0.7, abs=6 * (0.21 / values.numel()) ** 0.5)
    torch.testing.assert_close(
        found[kept], torch.full_like(found[kept], 2 / 0.7), rtol=2e-5, atol=0
    )
    neighbours = (kept[:, 1:] & kept[:, :-1]).float().mean().item()
    assert neighbours == pytest.approx(0.49, abs=0.01)
    found.sum().backward()
    assert torch.equal(values.grad != 0, kept)
    assert dropout(values, 0.3, False) is values
