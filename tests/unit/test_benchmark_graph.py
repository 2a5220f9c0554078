"""The re-creation of the released form computes what gsdist computes, with the same gradients."""

import json

import pytest
import torch

from benchmarks.graph.__main__ import main
from benchmarks.graph.released import EdgeList, as_released
from benchmarks.report.sections import section_of
from gsdist.workloads.graph.model import ModelShape, MvHetGnn
from gsdist.workloads.graph.views import GraphViews
from tests.workloads.graph.graphs import small_graph


def test_the_released_form_gives_the_same_results_and_gradients():
    graph = small_graph()
    views = GraphViews(graph)
    shape = ModelShape(width=4, num_classes=3, input_dropout=0.0, hop_dropout=0.0)
    outputs, gradients = [], []
    released = as_released(views.whole, views.sizes)
    assert torch.equal(released.inputs["author"], torch.eye(6))
    assert all(isinstance(hop.mean, EdgeList) for hop in released.views["author"][0].hops)
    for batch in (views.whole, released):
        torch.manual_seed(0)
        model = MvHetGnn(views.input_sizes(), graph.views, graph.inverse, "author", shape)
        output = model(batch)
        output.logits.square().sum().backward()
        outputs.append(output.logits)
        gradients.append(
            {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        )
    torch.testing.assert_close(*outputs)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_models_are_compared_over_seeds(tmp_path, monkeypatch, capsys):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    arguments = ["models", "--data", "hetero-sbm", "--models", "mv-hetgnn", "r-gcn", "--steps", "2"]
    arguments += [
        "--seeds",
        "0",
        "1",
        "--folder",
        str(tmp_path),
        "--json",
        str(tmp_path / "r.json"),
    ]
    monkeypatch.setattr(
        "benchmarks.graph.runs.preset",
        lambda workload, data: ({"data": data}, {"batch_size": 30, "optimizer": "adamw"}),
    )
    assert main(arguments) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    row = report["graph_rows"]["r-gcn"]
    assert row["seeds"] == [0, 1] and row["steps"] == 2
    assert row["mean"]["macro_f1"] == pytest.approx(sum(row["values"]["macro_f1"]) / 2)
    assert "mv-hetgnn" in capsys.readouterr().out
    (table,) = section_of("r.json", report).tables
    assert [line[:3] for line in table.rows] == [["mv-hetgnn", "2", "2"], ["r-gcn", "2", "2"]]
