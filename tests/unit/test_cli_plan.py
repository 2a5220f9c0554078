"""`gsdist plan`: units, what must be given together, the table and the JSON."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gsdist.cli.main import main
from gsdist.cli.plan import parse_bandwidth, parse_latency, plan_text
from gsdist.cli.train import parse
from gsdist.collectives.cost_model import Link
from gsdist.errors import ConfigError
from gsdist.planner import CANDIDATES, Measured, Situation, make_plan, transformer_shapes
from gsdist.planner.prediction import SKEW
from gsdist.reducers import TopKConfig
from gsdist.training import AutoConfig, RunConfig, TrainConfig
from gsdist.workloads import ClassificationConfig

ASSUMED = ["--world-size", "8", "--bandwidth", "100Mbit", "--latency", "1ms"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compress on one thread: on a busy machine two wait for each other most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_projection_says_so_and_is_complete_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--params", "2e5", *ASSUMED, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "projection"
    assert found["situation"] == {
        "ranks": 8,
        "link": {"latency": 1e-3, "bandwidth": 12.5e6, "overhead": {}},
        "compute_seconds": 0.0,
        "skew": SKEW,
    }
    names = {method["name"] for method in found["methods"]}
    assert names == set(CANDIDATES) - set(found["unfit"]) and found["chosen"] in names
    dense = next(method for method in found["methods"] if method["name"] == "dense")
    assert dense["bytes"] == 2 * 7 / 8 * 4 * found["num_parameters"]


def test_simulated_steps_are_asked_for_and_labelled(capsys: pytest.CaptureFixture[str]) -> None:
    asked = [*ASSUMED, "--compute", "1", "--spread", "0.3", "--workers-per-link", "4"]
    assert main(["plan", "--params", "2e5", *asked]) == 0
    text = capsys.readouterr().out
    assert "simulated, spread 0.3, 4 worker(s) per link; a projection" in text
    assert max(map(len, text.splitlines())) <= 80
    simulated = text.split("simulated")[1]
    assert "dense-bf16" in simulated and "random-k" not in simulated


@pytest.mark.parametrize("mbit", [0.01, 1e3, 1e6])
@pytest.mark.parametrize("ranks", [2, 4096])
def test_the_table_fits_80_columns(mbit: float, ranks: int) -> None:
    situation = Situation(
        ranks=ranks, link=Link(latency=0.2, bandwidth=125e3 * mbit), compute_seconds=123.456
    )
    plan = make_plan(
        transformer_shapes(7e10), dict.fromkeys(CANDIDATES, Measured(local_seconds=98.7)), situation
    )
    text = plan_text(plan, "projection")
    assert max(map(len, text.splitlines())) <= 80
    assert all(name in text for name in CANDIDATES)
    assert f"choice: {plan.chosen.name}" in text


@pytest.mark.parametrize(
    ("text", "value"), [("100Mbit", 12.5e6), ("2.5gbit", 312.5e6), ("64 kbit", 8e3)]
)
def test_bandwidths(text: str, value: float) -> None:
    assert parse_bandwidth(text) == value


@pytest.mark.parametrize(("text", "value"), [("50us", 5e-5), ("20ms", 0.02), ("0.1s", 0.1)])
def test_latencies(text: str, value: float) -> None:
    assert parse_latency(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "fast", "100", "0Mbit", "-1Mbit", "1MB"])
def test_what_is_no_bandwidth_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="bandwidth"):
        parse_bandwidth(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--params", "1e6"], "start with torchrun"),
        (["--params", "1e6", "--world-size", "8"], "together"),
        (["--params", "1e6", *ASSUMED, "--compute", "-1"], "compute is -1"),
        (["--params", "10", *ASSUMED], "params is 10"),
        (["--params", "1e6", *ASSUMED[:3], "1MB", *ASSUMED[4:]], "bandwidth is '1MB'"),
    ],
)
def test_what_cannot_be_answered_is_refused_without_a_traceback(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["plan", *arguments])
    except SystemExit as error:  # from the parser
        code = error.code
    error = capsys.readouterr().err
    assert code == 2 and message in error and "Traceback" not in error


def test_auto_is_left_to_the_start_and_a_resumed_run_keeps_what_was_chosen(
    tmp_path: Path,
) -> None:
    arguments = ["--reducer", "auto", "--run-dir", str(tmp_path)]
    run, _ = parse("classification", arguments)
    assert isinstance(run.reducer, AutoConfig) and run.reducer_name == "auto"
    with pytest.raises(ConfigError, match="choose_reducer"):
        run.exchange()
    assert isinstance(parse("classification", [*arguments, "--resume"])[0].reducer, AutoConfig)

    chosen = TopKConfig(exchange="proposals", momentum="local")
    begun = RunConfig(
        train=TrainConfig(run_dir=tmp_path, seed=7),
        reducer=chosen,
        workload_name="classification",
        workload=ClassificationConfig(),
    )
    (tmp_path / "config.toml").write_text(begun.to_toml())
    resumed, _ = parse("classification", [*arguments, "--resume"])
    assert resumed.reducer == chosen and resumed.train.resume and resumed.train.seed == 7


def test_momentum_goes_before_compression_only_where_every_step_is_exchanged() -> None:
    reducer = ["--reducer", "top-k"]
    assert parse("classification", reducer)[0].reducer == TopKConfig(momentum="local")
    outer = parse("classification", [*reducer, "--outer-interval", "4"])[0]
    assert outer.reducer == TopKConfig(momentum="post")
