"""The convergence benchmark: what makes its rows comparable, and the report programs read."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.convergence.__main__ import main
from benchmarks.convergence.budgets import Fitter
from benchmarks.convergence.emulation import EmulatedExchange, MethodConfig, dense_bytes
from benchmarks.convergence.gradients import Objective, worker_gradients
from benchmarks.convergence.methods import DENSE, METHODS, settings_of
from benchmarks.convergence.oracle import OracleConfig
from benchmarks.convergence.run import Curves, train, trained_steps
from benchmarks.convergence.table import Cell, cells, keep, rows_of, summarize
from benchmarks.convergence.workloads import PRESETS, Training, open_workload, training_batches
from gsdist.models import build_model
from gsdist.reducers import DenseConfig, GsSgdPaperConfig, SparseConfig
from gsdist.workloads import ClassificationConfig, ClassificationWorkload

DIGITS = Training(
    workload="mlp",
    global_batch=64,
    learning_rate=0.05,
    steps=12,
    evaluation_items=50,
    energy_every=4,
)


@pytest.fixture(scope="module")
def dense() -> dict[str, Any]:
    return train(DIGITS, DenseConfig(), workers=4, seed=0)


def plain_training(training: Training, seed: int) -> tuple[list[Tensor], list[float]]:
    """Train on whole batches by plain PyTorch; return parameters and losses."""
    workload = open_workload(training)
    torch.manual_seed(seed)
    model = workload.build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=training.learning_rate, momentum=0.9)
    losses = []
    for step, (images, labels) in enumerate(
        islice(training_batches(training, workload, seed), training.steps)
    ):
        rate = training.learning_rate * (1 + math.cos(math.pi * step / training.steps)) / 2
        optimizer.param_groups[0]["lr"] = rate
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return list(model.parameters()), losses


@pytest.mark.parametrize("workers", [2, 8, 64])
def test_dense_equals_plain_training_whatever_the_number_of_workers(workers: int) -> None:
    expected, expected_losses = plain_training(DIGITS, seed=3)
    torch.manual_seed(3)
    workload = open_workload(DIGITS)
    objective = Objective(workload, workload.build_model())
    curves = Curves()
    for _ in trained_steps(DIGITS, DenseConfig(), objective, curves, workers=workers, seed=3):
        pass
    torch.testing.assert_close(list(objective.model.parameters()), expected, rtol=1e-4, atol=1e-6)
    assert curves.loss == pytest.approx(expected_losses, abs=2e-5)


def test_dense_sends_one_ring_all_reduce_per_step(dense: dict[str, Any]) -> None:
    parameters = 64 * 64 + 64 + 64 * 10 + 10
    assert dense["curves"]["bytes"][0] == 2 * 3 / 4 * 4 * parameters
    assert dense["busiest_link_bytes"] == DIGITS.steps * dense["curves"]["bytes"][0]
    assert dense["wire_compression"] == 1.0


def test_vectorised_gradients_equal_those_of_one_worker_after_the_other() -> None:
    torch.manual_seed(0)
    workload = ClassificationWorkload(ClassificationConfig(model="resnet8", norm="group"))
    objective = Objective(workload, build_model("resnet8", num_classes=10, norm="group").double())
    batch = (torch.randn(8, 3, 32, 32, dtype=torch.float64), torch.arange(8))
    together, loss = worker_gradients(objective, batch, 4, vectorised=True)
    one_by_one, same_loss = worker_gradients(objective, batch, 4, vectorised=False)
    torch.testing.assert_close(together, one_by_one)
    assert loss == pytest.approx(same_loss)
    (whole,), _ = worker_gradients(objective, batch, 1, vectorised=False)
    torch.testing.assert_close(together.mean(dim=0), whole)


def test_the_seed_alone_decides_the_data() -> None:
    workload = open_workload(DIGITS)
    first, again = (next(training_batches(DIGITS, workload, 5)) for _ in range(2))
    other = next(training_batches(DIGITS, workload, 6))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("name", METHODS)
def test_a_run_sends_what_was_predicted_and_starts_like_dense(
    name: str, dense: dict[str, Any]
) -> None:
    parameters = dict(open_workload(DIGITS).build_model().named_parameters())
    fit = Fitter(parameters, workers=4, steps=DIGITS.steps).fit(
        METHODS[name], 2.5, warmup_share=0.25
    )
    assert fit.meets and fit.runs
    row = train(DIGITS, fit.config, workers=4, seed=0)
    if name == "proposals":  # proposals that coincide are fetched once
        assert row["wire_compression"] >= fit.compression
    else:
        assert row["wire_compression"] == pytest.approx(fit.compression, rel=1e-9)
    assert not row["diverged"]
    same = fit.config.warmup_steps + 1  # the loss is taken before the update
    assert row["curves"]["loss"][:same] == pytest.approx(dense["curves"]["loss"][:same], abs=2e-5)
    assert [step for step, _ in row["curves"]["energy"]] == [3, 7, 11]
    if name == "oracle":
        assert row["energy"] == pytest.approx(1.0, abs=1e-4)


def test_a_run_that_diverges_says_so_and_ends() -> None:
    wild = replace(DIGITS, learning_rate=1e30)
    row = train(wild, METHODS["top-k"], workers=4, seed=0)
    assert row["diverged"]
    assert len(row["curves"]["bytes"]) < wild.steps
    json.dumps(row, allow_nan=False)


@pytest.mark.parametrize("name", METHODS)
def test_a_budget_is_used_up_within_five_percent(name: str) -> None:
    parameters = {
        "matrix": nn.Parameter(torch.zeros(100, 256)),
        "bias": nn.Parameter(torch.zeros(9)),
    }
    fit = Fitter(parameters, workers=3, steps=400).fit(METHODS[name], 10.0, warmup_share=0.25)
    assert fit.meets and fit.runs
    assert 10.0 <= fit.compression <= 10.5


def test_methods_can_be_held_at_the_same_density() -> None:
    table = cells(
        DIGITS,
        ["gs-sgd-paper", "g-top-k", "sketched-sgd"],
        workers=[4],
        budgets=[10.0],
        seeds=[0],
        warmup_share=0.25,
        density=0.01,
    )
    configs = [cell.config for cell in table if cell.method != DENSE]
    assert len(configs) == 3
    for config in configs:
        assert isinstance(config, SparseConfig)
        assert (config.density, config.warmup_steps) == (0.01, 0)


def test_a_density_is_refused_where_no_coordinates_are_selected() -> None:
    with pytest.raises(SystemExit, match="power-sgd selects no coordinates"):
        main(["--density", "0.01", "--methods", "g-top-k", "power-sgd"])


def test_adamw_gets_the_averaged_gradient_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    adamw = replace(PRESETS["mlp"], optimizer="adamw")
    monkeypatch.setattr("benchmarks.convergence.run.PRESETS", {"mlp": adamw})
    training = replace(DIGITS, learning_rate=2e-3)
    workload = open_workload(training)
    torch.manual_seed(3)
    expected = workload.build_model()
    optimizer = torch.optim.AdamW(
        expected.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=training.steps)
    for images, labels in islice(training_batches(training, workload, 3), training.steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(expected(images), labels).backward()
        optimizer.step()
        schedule.step()
    everything = settings_of("top-k:density=1.0", "adamw")
    torch.manual_seed(3)
    objective = Objective(workload, workload.build_model())
    for _ in trained_steps(training, everything, objective, Curves(), workers=4, seed=3):
        pass
    torch.testing.assert_close(
        list(objective.model.parameters()), list(expected.parameters()), rtol=1e-3, atol=1e-5
    )


def test_settings_of_a_method_can_be_replaced() -> None:
    config = settings_of("gs-sgd-paper:rows=3,masking=False,wire_dtype=float32")
    assert isinstance(config, GsSgdPaperConfig)
    assert (config.rows, config.masking, config.wire_dtype) == (3, False, "float32")
    assert settings_of("gs-sgd") == METHODS["gs-sgd"]
    # A change is what the user wants, whatever suits the optimizer.
    changed = settings_of("gs-sgd:max_directions=8", "adamw")
    assert (changed.max_directions, changed.momentum) == (8, "post")
    for name in ("gs-sgd:rows=3", "gs-sdg"):
        with pytest.raises(ValueError, match=r"no setting 'rows'|'gs-sdg' is none of"):
            settings_of(name)


def test_a_budget_out_of_reach_is_not_run() -> None:
    parameters = {
        "matrix": nn.Parameter(torch.zeros(8, 64)),
        "bias": nn.Parameter(torch.zeros(500)),
    }
    fit = Fitter(parameters, workers=4, steps=40).fit(METHODS["top-k"], 10.0, warmup_share=0.25)
    assert not fit.meets and not fit.runs
    assert fit.compression < 2.1  # the bias alone is half of the model
    assert fit.config.warmup_steps == 0


def oracle_exchange(**settings: Any) -> EmulatedExchange:
    config = OracleConfig(min_numel=0, warmup_steps=0, density=1 / 128, **settings)
    return EmulatedExchange(
        config, {"matrix": torch.zeros(2, 64, requires_grad=True)}, 2, momentum=0.5
    )


def test_oracle_by_hand() -> None:
    exchange = oracle_exchange()
    gradients = torch.zeros(2, 128)
    gradients[0, :3] = torch.tensor([5.0, 3.0, 0.0])
    gradients[1, :3] = torch.tensor([-5.0, 2.0, 4.0])  # largest sum: 5, of coordinate 1
    first = exchange.average(gradients).clone()
    assert first.nonzero().flatten().tolist() == [1]
    assert first[1] == 2.5
    residuals = [reducer.state_dict()["residual"]["matrix"][0, :3] for reducer in exchange.reducers]
    assert residuals[0].tolist() == [5.0, 0.0, 0.0]
    assert residuals[1].tolist() == [-5.0, 0.0, 4.0]
    second = exchange.average(torch.zeros(2, 128))
    assert second.nonzero().flatten().tolist() == [2]
    assert second[2] == 2.0
    # One index, one value, a flag and 32 agreement lanes; 2 (P - 1) / P = 1.
    assert exchange.last_bytes() == 4 * (1 + 1 + 1 + 32)


def test_corrected_sum_holds_residual_and_momentum() -> None:
    exchange = oracle_exchange(momentum="local")
    exchange.average(torch.ones(2, 128).index_fill_(1, torch.tensor([7]), 4.0))  # sends 7
    # Elsewhere: residual 1, momentum 0.5 * 1, gradient 1, on two workers; 7 was sent and masked.
    expected = torch.full((128,), 5.0)
    expected[7] = 2.0
    assert torch.equal(exchange.corrected_sum(torch.ones(2, 128)), expected)


def test_oracle_of_all_coordinates_is_dense_training(dense: dict[str, Any]) -> None:
    config = OracleConfig(momentum="local", min_numel=0, warmup_steps=0, density=1.0)
    whole = train(DIGITS, config, workers=4, seed=0)
    assert whole["curves"]["loss"] == pytest.approx(dense["curves"]["loss"], abs=2e-5)


def test_dense_bytes_are_those_of_a_ring() -> None:
    assert dense_bytes({"matrix": torch.zeros(10, 10)}, 5) == 2 * 4 / 5 * 400


def test_finished_rows_are_kept(tmp_path: Path) -> None:
    made = []

    def make(training: Training, cell: Cell) -> dict[str, Any]:
        made.append((training.steps, cell.seed))
        return {"seed": cell.seed}

    cell = Cell(method=DENSE, workers=2, budget=1.0, seed=0, config=DenseConfig())
    assert keep(tmp_path, DIGITS, cell, make) == {"seed": 0}
    assert keep(tmp_path, DIGITS, cell, make) == {"seed": 0}
    assert made == [(12, 0)]
    keep(tmp_path, DIGITS, replace(cell, seed=1), make)
    keep(tmp_path, DIGITS, replace(cell, workers=4), make)
    keep(tmp_path, DIGITS, replace(cell, config=DenseConfig(wire_dtype="bfloat16")), make)
    keep(tmp_path, replace(DIGITS, steps=13), cell, make)
    assert made == [(12, 0), (12, 1), (12, 0), (12, 0), (13, 0)]
    assert len(list(tmp_path.iterdir())) == 5
    keep(None, DIGITS, cell, make)
    assert len(made) == 6


def test_rows_of_an_earlier_report_are_not_run_again(tmp_path: Path) -> None:
    def make(training: Training, cell: Cell) -> dict[str, Any]:
        place = {"method": cell.method, "workers": cell.workers, "budget": cell.budget}
        settings = {"training": asdict(training), "config": asdict(cell.config or DenseConfig())}
        return {**place, **settings, "seed": cell.seed, "made": "then"}

    def refuse(training: Training, cell: Cell) -> dict[str, Any]:
        raise AssertionError("is known")

    cell = Cell(method=DENSE, workers=2, budget=1.0, seed=0, config=DenseConfig())
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"rows": [make(DIGITS, cell)]}))
    known = rows_of([report])
    assert keep(None, DIGITS, cell, refuse, known)["made"] == "then"
    for other in (replace(cell, seed=1), replace(cell, config=DenseConfig(wire_dtype="float16"))):
        with pytest.raises(AssertionError, match="is known"):
            keep(None, DIGITS, other, refuse, known)


def test_rows_from_before_a_setting_existed_have_its_default(tmp_path: Path) -> None:
    cell = Cell(method=DENSE, workers=2, budget=1.0, seed=0, config=DenseConfig())
    row = {"method": DENSE, "workers": 2, "budget": 1.0, "seed": 0, "config": asdict(DenseConfig())}
    training = {name: value for name, value in asdict(DIGITS).items() if name != "clip_norm"}
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"rows": [row | {"training": training}]}))
    known = rows_of([report])
    assert keep(None, DIGITS, cell, known=known)["training"] == training
    clipped = replace(DIGITS, clip_norm=1.0)
    made = keep(None, clipped, cell, lambda training, cell: {"training": "anew"}, known)
    assert made["training"] == "anew"


@pytest.mark.parametrize("config", [DenseConfig(), settings_of("power-sgd", "adamw")])
def test_the_average_is_clipped_after_the_exchange(config: MethodConfig) -> None:
    clipped = replace(DIGITS, clip_norm=1e-3, learning_rate=1.0, momentum=0.0, steps=1)
    workload = open_workload(clipped)
    torch.manual_seed(0)
    objective = Objective(workload, workload.build_model())
    start = torch.nn.utils.parameters_to_vector(objective.model.parameters()).detach()
    list(trained_steps(clipped, config, objective, Curves(), workers=4, seed=0))
    end = torch.nn.utils.parameters_to_vector(objective.model.parameters()).detach()
    assert float((end - start).norm()) == pytest.approx(1e-3, rel=1e-2)


def test_summary_is_paired_by_seed() -> None:
    def row(method: str, seed: int, accuracy: float) -> dict[str, Any]:
        budget = 1.0 if method == DENSE else 10.0
        place = {"method": method, "workers": 4, "budget": budget, "seed": seed}
        return {**place, "accuracy": accuracy, "loss": 1.0, "wire_compression": budget}

    rows = [row(DENSE, 0, 0.5), row(DENSE, 1, 0.75), row("top-k", 0, 0.25), row("top-k", 1, 0.75)]
    dense, top_k = summarize(rows)
    assert dense["accuracy"] == 0.625
    assert dense["accuracy_minus_dense"] == 0.0
    assert top_k["accuracy"] == 0.5
    assert top_k["accuracy_standard_error"] == pytest.approx(0.25)
    assert top_k["accuracy_minus_dense"] == pytest.approx(-0.125)
    assert top_k["accuracy_minus_dense_standard_error"] == pytest.approx(0.125)
    assert top_k["seeds"] == 2


def test_json_on_standard_output_stands_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--workload", "mlp", "--workers", "4", "--budgets", "3", "--seeds", "0", "1"]
    arguments += ["--steps", "8", "--methods", "top-k", "sketched-sgd", "--json", "-"]
    main([*arguments, "--cache", str(tmp_path)])
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["schema"] == 1
    assert {"commit", "torch", "cpu", "threads", "date"} <= set(report["environment"])
    assert [(r["method"], r["seed"]) for r in report["rows"] + report["left_out"]].count(
        ("top-k", 1)
    ) == 1
    keys = {"method", "workers", "budget", "seed", "wire_compression", "accuracy", "loss", "energy"}
    for row in report["rows"]:
        assert keys | {"curves", "config", "training", "made"} <= set(row)
        assert len(row["curves"]["loss"]) == len(row["curves"]["bytes"]) == 8
        assert row["curves"]["bytes"] == sorted(row["curves"]["bytes"])
    assert {entry["method"] for entry in report["summary"]} >= {"dense", "top-k"}
    assert "top-k" in captured.err
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(kept) == len(report["rows"])
    main([*arguments, "--cache", str(tmp_path)])
    assert json.loads(capsys.readouterr().out)["rows"] == report["rows"]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == kept


def test_workers_must_share_the_batch_evenly() -> None:
    with pytest.raises(SystemExit, match="--workers 3: at least 2 workers .* 64 evenly"):
        main(["--workload", "mlp", "--workers", "2", "3"])
