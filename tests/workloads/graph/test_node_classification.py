"""Node classification: what is minimised and where, what is measured, and that links are used."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse
import torch
import torch.nn.functional as F

from gsdist.cli.main import main
from gsdist.data.hetero_sbm import hetero_sbm
from gsdist.errors import ConfigError, DataError, UnsupportedSetup
from gsdist.workloads.graph import NodeConfig, NodeWorkload
from gsdist.workloads.graph.baselines import BASELINES, build_baseline
from gsdist.workloads.graph.model import ModelShape, MvHetGnn
from gsdist.workloads.graph.views import GraphViews
from tests.workloads.graph.graphs import APA, small_graph


@pytest.fixture(autouse=True)
def _plain_process(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def workload(task=None, **settings):
    return NodeWorkload(NodeConfig(data="hetero-sbm", **settings), task)


def larger():
    """Enough nodes for an accuracy that means something."""
    return hetero_sbm(authors=400, papers=900)


def train(work, steps, seed=0):
    """Full batches with Adam; the replicated loss in one backward pass with the others."""
    torch.manual_seed(seed)
    model = work.build_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    everyone = torch.arange(len(work.training_dataset()))
    for _ in range(steps):
        batch = work.prepare_batch(everyone, training=True)
        (work.loss(model, batch).total + work.replicated_loss(model)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def accuracy(work, model):
    return work.evaluate(model, [None])["micro_f1"][0]


# ---- loss -----------------------------------------------------------------------------------------


def test_loss_is_cross_entropy_and_the_weighted_reconstruction():
    work = workload(reconstruction=0.25, input_dropout=0.0, hop_dropout=0.0)
    model = work.build_model()
    batch = work.prepare_batch(torch.tensor([3, 0]), training=True)
    nodes = work.task.train[[3, 0]]
    output = model(batch.graph)
    parts = work.loss(model, batch)
    assert list(parts) == ["cross_entropy", "reconstruction"]
    whole = model(work.views.whole).logits
    expected = F.cross_entropy(whole[nodes], work.task.labels[nodes])
    torch.testing.assert_close(parts["cross_entropy"], expected)
    torch.testing.assert_close(parts["reconstruction"], 0.25 * output.reconstruction)


def test_balanced_classes_weigh_the_same_and_one_on_average():
    task = hetero_sbm()
    labels = task.labels.clone()
    labels[task.train] = torch.tensor([0] * 45 + [1] * 10 + [2] * 5)
    work = NodeWorkload(
        NodeConfig(data="hetero-sbm", class_weights="balanced"), replace(task, labels=labels)
    )
    model = work.build_model().eval()
    batch = work.prepare_batch(torch.arange(60), training=True)
    losses = F.cross_entropy(model(batch.graph).logits, batch.labels, reduction="none")
    # Class 3 does not occur: the means of the three others, a third each.
    expected = sum(losses[batch.labels == label].mean() for label in range(3)) / 3
    torch.testing.assert_close(work.loss(model, batch)["cross_entropy"], expected)


def test_the_regulariser_depends_on_parameters_only_and_stays_out_of_the_loss():
    work = workload(orthogonality=7.0, weight_penalty=0.5)
    model = work.build_model()
    with torch.no_grad():
        for fusion in model.modules():
            if hasattr(fusion, "outer_encoder"):
                fusion.outer_encoder.normal_()
    work.replicated_loss(model).backward()
    (fusion,) = model.fusions[0].values()
    for name, parameter in model.named_parameters():
        if parameter is not fusion.outer_encoder and parameter is not fusion.inner_encoders:
            torch.testing.assert_close(parameter.grad, 0.5 * parameter, msg=name)
    encoder = fusion.outer_encoder.detach().clone().requires_grad_()
    products = encoder.T @ encoder
    (7 * (products - products.diag().diag()).abs().sum() + 0.25 * encoder.square().sum()).backward()
    torch.testing.assert_close(fusion.outer_encoder.grad, encoder.grad)


def test_the_orthogonality_can_be_moved_into_the_exchanged_loss():
    inside, outside = workload(exchange_regulariser=True), workload()
    torch.manual_seed(0)
    model = outside.build_model().eval()
    batch = outside.prepare_batch(torch.arange(10), training=True)
    totals = [
        work.loss(model, batch).total + work.replicated_loss(model) for work in (inside, outside)
    ]
    torch.testing.assert_close(*totals)
    assert "orthogonality" in inside.loss(model, batch)


# ---- evaluation -----------------------------------------------------------------------------------


def test_evaluation_is_one_item_whose_metrics_the_other_ranks_name_too():
    work = workload()
    assert len(work.evaluation_dataset()) == 1
    model = work.build_model().train()
    measured = work.evaluate(model, [work.prepare_batch(torch.tensor([0]), training=False)])
    assert model.training
    assert {count for _, count in measured.values()} == {1.0}
    assert work.evaluate(model, []) == dict.fromkeys(measured, (0.0, 0.0))
    model.eval()
    hits = model(work.views.whole).logits.argmax(1) == work.task.labels
    assert measured["micro_f1"][0] == pytest.approx(hits[work.task.test].float().mean().item())


def test_it_learns_from_links_where_features_are_noise():
    work = workload(larger(), weight_penalty=1e-3)
    assert accuracy(work, train(work, 50)) > 0.9


def test_shuffled_labels_cannot_be_learnt():
    task = larger()
    order = torch.randperm(len(task.labels), generator=torch.Generator().manual_seed(1))
    work = workload(replace(task, labels=task.labels[order]), weight_penalty=1e-3)
    assert accuracy(work, train(work, 50)) < 0.4


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_learn_and_all_their_trained_parameters_have_gradients(name):
    work = workload(model=name, weight_penalty=1e-4)
    batch = work.prepare_batch(torch.arange(60), training=True)
    before, after = (work.loss(train(work, steps).eval(), batch).total for steps in (0, 40))
    # HAN reads the features of authors alone, which are noise, and learns by heart.
    assert after < 0.8 * before
    model = train(work, 1)
    assert not isinstance(model, MvHetGnn)
    work.loss(model, batch).total.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None for p in trained)


def test_han_describes_the_wanted_nodes_as_it_describes_all():
    graph = small_graph(views={"author": (APA,)})
    views = GraphViews(graph)
    torch.manual_seed(0)
    model = build_baseline("han", views, "author", ModelShape(width=8, num_classes=3)).eval()
    every = model(views.whole).embeddings["author"]
    wanted = torch.tensor([4, 1, 0])
    # With one metapath its weight is 1 whoever is asked for.
    found = model(replace(views.whole, wanted={"author": wanted})).embeddings["author"]
    assert every[wanted].abs().sum() > 0
    torch.testing.assert_close(found, every[wanted])


@pytest.mark.parametrize("blocks", [{"blocks": "layered"}, {"blocks": "layered", "neighbours": 3}])
def test_it_learns_from_layered_blocks(blocks):
    work = workload(larger(), weight_penalty=1e-3, **blocks)
    assert accuracy(work, train(work, 40)) > 0.8


# ---- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "gat"}, "'gat'.*mv-hetgnn, han, hgt, r-gcn"),
        ({"data": "digits"}, "unknown data set 'digits'"),
        ({"reconstruction": 0.0}, "reconstruction must be positive"),
        ({"orthogonality": -1.0}, "orthogonality must be at least 0"),
        ({"input_dropout": 1.0}, "input_dropout must be in"),
        ({"layers": 0}, "layers"),
        ({"neighbours": 5}, "needs blocks='layered'"),
        ({"blocks": "layered", "layers": 2}, "layers=2 needs blocks='whole'"),
        ({"blocks": "layered", "model": "han"}, "describes the whole graph"),
        ({"class_weights": "none"}, "class_weights"),
    ],
)
def test_bad_settings_are_refused_at_once(settings, message):
    with pytest.raises(ConfigError, match=message):
        NodeConfig(**settings)


def test_missing_data_names_the_way_to_it(tmp_path):
    for data, hint in (
        ("films", "gsdist data films"),
        ("wordnet", "gsdist data wordnet"),
        ("dblp", "a_feat.npz.*torch_geometric.datasets.DBLP"),
        ("imdb", "torch_geometric.datasets.IMDB"),
    ):
        with pytest.raises(DataError, match=hint):
            NodeWorkload(NodeConfig(data=data, data_root=str(tmp_path))).build_model()


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_geometric.data", None)
    with pytest.raises(UnsupportedSetup, match=r"pip install 'gsdist\[graph\]'"):
        workload().build_model()


# ---- commands -------------------------------------------------------------------------------------


def test_the_command_reports_means_over_seeds(tmp_path, capsys):
    arguments = ["train", "mv-hetgnn", "--data", "hetero-sbm", "--seeds", "3", "4"]
    arguments += ["--steps", "12", "--batch-size", "30", "--evaluate-every", "4", "--no-progress"]
    arguments += ["--run-dir", str(tmp_path), "--json", "-"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["seeds"] == [3, 4] and found["seconds"] > 0
    runs = [json.loads((tmp_path / f"seed-{s}" / "summary.json").read_text()) for s in (3, 4)]
    for name in ("macro_f1", "micro_f1", "nmi", "ari"):
        values = [run[name] for run in runs]
        assert found[name] == pytest.approx(np.mean(values))
        assert found["standard_deviation"][name] == pytest.approx(np.std(values, ddof=1))
    assert runs[0]["reducer"] == "dense"
    for run in runs:
        # The weights of the best validation, not those of the end.
        evaluations = run["curves"]["evaluation"]
        best = int(np.argmax(evaluations["validation_macro_f1"]))
        assert run["macro_f1"] == evaluations["macro_f1"][best]
        assert len(run["picture"]["x"]) == len(run["picture"]["group"]) == 40
    assert main(["report", str(tmp_path / "seed-3"), "--output", str(tmp_path / "page.html")]) == 0
    assert "placed in the plane" in (tmp_path / "page.html").read_text()


def write_heco(folder, task):
    """Write a graph in the layout of HeCo's DBLP."""
    folder.mkdir()
    graph = task.graph.data
    for name in ("author", "paper"):
        features = scipy.sparse.csr_matrix((graph[name].x > 0).float().numpy())
        scipy.sparse.save_npz(folder / f"{name[0]}_feat.npz", features)
    np.save(folder / "labels.npy", task.labels.numpy())
    for name, initial in (("author", "a"), ("term", "t"), ("venue", "c")):
        edges = graph["paper", "has", name].edge_index.T.numpy()
        np.savetxt(folder / f"p{initial}.txt", edges, fmt="%d", delimiter="\t")


def test_dblp_in_the_layout_of_heco_runs_through_the_command(tmp_path, capsys):
    folder = tmp_path / "dblp"
    task = hetero_sbm(authors=400, papers=900)
    write_heco(folder, task)
    work = NodeWorkload(NodeConfig(data="dblp", data_root=str(folder)))
    assert [len(part) for part in (work.task.train, work.task.validation)] == [40, 39]
    assert work.task.labels.tolist() == task.labels.tolist()
    ours = work.task.graph.data["author", "to", "paper"].edge_index
    theirs = task.graph.data["author", "rev_has", "paper"].edge_index
    assert set(map(tuple, ours.T.tolist())) == set(map(tuple, theirs.T.tolist()))
    arguments = ["train", "mv-hetgnn", "--data", "dblp", "--data-root", str(folder)]
    arguments += ["--steps", "60", "--batch-size", "40", "--reducer", "dense", "--no-progress"]
    arguments += ["--learning-rate", "0.02", "--weight-penalty", "1e-3"]
    assert main([*arguments, "--run-dir", str(tmp_path / "run"), "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["macro_f1"] > 0.5 and {"micro_f1", "nmi", "ari", "seconds"} <= found.keys()

    (folder / "pt.txt").unlink()
    assert main([*arguments, "--run-dir", str(tmp_path / "run")]) == 71
    assert "layout of HeCo" in capsys.readouterr().err


def test_a_resumed_run_ends_with_the_best_weights_of_both_parts(tmp_path):
    def run(name, steps):
        folder = tmp_path / name
        arguments = ["train", "mv-hetgnn", "--data", "hetero-sbm", "--batch-size", "30"]
        arguments += ["--schedule", "constant", "--steps", steps, "--evaluate-every", "2"]
        arguments += ["--reducer", "dense", "--run-dir", str(folder), "--no-progress"]
        arguments += ["--checkpoint-every", "4", "--resume", "--save-model", f"{folder}.pt"]
        assert main(arguments) == 0
        return torch.load(f"{folder}.pt", weights_only=True)

    whole = run("whole", "8")
    run("parts", "4")
    resumed = run("parts", "8")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
