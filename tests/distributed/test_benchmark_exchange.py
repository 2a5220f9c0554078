"""The exchange benchmark on real processes: the original gTop-k, the gate, and a small run in the lab."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from benchmarks import gradients
from benchmarks.exchange.__main__ import main
from benchmarks.exchange.driver import Driver, Exchange
from benchmarks.exchange.gate import find_fault, mass_fault
from benchmarks.exchange.methods import METHODS, ORIGINAL
from benchmarks.exchange.referee import Referee, referee
from benchmarks.g_top_k_original import OriginalGTopKConfig
from benchmarks.netlab import Counters, LabCounters, LabUnavailable
from benchmarks.netlab.kernel import require_rights_and_tools
from benchmarks.step.__main__ import main as step_main
from gsdist.errors import ConfigError
from gsdist.reducers import DenseConfig, GTopKConfig
from tests.distributed.harness import run_ranks

SHAPES = {"first": (70, 50), "bias": (70,), "second": (40, 60)}
DENSITY = 0.05
KEYS = {
    "seconds_median",
    "seconds_p10",
    "seconds_p90",
    "wire_seconds",
    "local_seconds",
    "payload_bytes",
    "interface_bytes",
    "predicted_bytes",
    "predicted_seconds",
    "correct",
}


def drawn(rank: int) -> list[torch.Tensor]:
    numel = sum(torch.Size(shape).numel() for shape in SHAPES.values())
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(numel, generator=generator) for _ in range(4)]


def world() -> dist.ProcessGroup:
    assert dist.group.WORLD is not None
    return dist.group.WORLD


def original_and_ours(rank: int, world_size: int) -> list[bool]:
    settings = {"density": DENSITY, "warmup_steps": 0}
    theirs = Driver(OriginalGTopKConfig(**settings), SHAPES, world())
    ours = Driver(GTopKConfig(**settings, dropped="forget"), SHAPES, world())
    equal = []
    for gradient in drawn(rank):
        for one in (theirs, ours):
            one.buffer.copy_(gradient)
            one.exchange()
        equal.append(torch.equal(theirs.buffer, ours.buffer))
        equal.append(torch.equal(theirs.residual(), ours.residual()))
    return equal


@pytest.mark.parametrize("world_size", [2, 4])
def test_original_g_top_k_gives_what_ours_gives(world_size: int) -> None:
    for equal in run_ranks(original_and_ours, world_size):
        assert len(equal) == 8 and all(equal)


def entry_bytes(rank: int, world_size: int) -> tuple[int, int]:
    sizes = []
    for config_type in (OriginalGTopKConfig, GTopKConfig):
        driver = Driver(config_type(density=DENSITY, warmup_steps=0), SHAPES, world())
        driver.buffer.copy_(drawn(rank)[0])
        transfers = driver.exchange().transfers
        sizes.append(next(int(t.size) for t in transfers if t.kind == "tree_reduce"))
    return sizes[0], sizes[1]


def test_original_g_top_k_sends_sixteen_bytes_an_entry() -> None:
    selected = round(DENSITY * (70 * 50 + 40 * 60))
    assert run_ranks(entry_bytes, 2) == [(16 * selected, 8 * selected)] * 2


def build_for_three(rank: int, world_size: int) -> str:
    try:
        Driver(OriginalGTopKConfig(), SHAPES, world())
    except ConfigError as error:
        return str(error)
    return ""


def test_original_g_top_k_refuses_three_workers() -> None:
    assert all("not 3" in text for text in run_ranks(build_for_three, 3))


def no_counters() -> LabCounters:
    nothing = Counters(sent_bytes=0, sent_packets=0, received_bytes=0, received_packets=0)
    return LabCounters(ranks=(nothing,) * 4)


class Astray(Driver):
    """Goes wrong by one bit of one entry on one rank."""

    def exchange(self) -> Exchange:
        done = super().exchange()
        if dist.get_rank() == 2:
            self.buffer[5] = torch.nextafter(self.buffer[5], torch.tensor(torch.inf))
        return done


def pass_the_gate(
    rank: int, world_size: int, address: str, key: str
) -> tuple[dict[str, str | None], str | None, str | None]:
    meetings = Referee(address, key, rank)
    faults = {
        method: find_fault(method, DENSITY, SHAPES, drawn(rank), world(), meetings)
        for method in METHODS
    }
    lossy = GTopKConfig(density=DENSITY, warmup_steps=0, dropped="forget")
    astray = Astray(DenseConfig(), SHAPES, world())
    return (
        faults,
        mass_fault(Driver(lossy, SHAPES, world()), 1e-5, world(), meetings),
        mass_fault(astray, 1e-5, world(), meetings),
    )


def test_the_gate_lets_all_methods_pass_and_catches_those_that_are_wrong() -> None:
    with referee(4, no_counters) as (address, key):
        outcomes = run_ranks(pass_the_gate, 4, address, key)
    for faults, of_lossy, of_astray in outcomes:
        assert faults == dict.fromkeys(METHODS)
        assert of_lossy is not None and "lost" in of_lossy
        assert of_astray is not None and "different results" in of_astray
    assert len({of_lossy for _, of_lossy, _ in outcomes}) == 1


@pytest.fixture
def lab_rights() -> None:
    try:
        require_rights_and_tools()
    except LabUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("lab_rights")
def test_a_small_run_in_the_lab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gradients, "FOLDER", tmp_path)
    methods = ["dense-fp32", "gs-sgd-paper", "sketched-sgd", "top-k", ORIGINAL, "power-sgd"]
    size = ["--models", "mlp", "--ranks", "2", "--rates", "100mbit"]
    effort = ["--seconds", "0.05", "--repetitions", "3"]
    code = main([*size, *effort, "--methods", *methods, "--json", "-"])
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert code == 0 and report["schema"] == 3
    assert report["labs"][0]["fault"] is None, report["labs"]
    assert [cell["method"] for cell in report["cells"]] == methods
    for cell in report["cells"]:
        assert set(cell) >= KEYS and cell["correct"]
        assert abs(cell["interface_bytes"] - cell["predicted_bytes"]) < 10_000
        assert cell["repetitions"] >= 3
    assert "power-sgd" in captured.err and " Mb/s" in captured.err


@pytest.mark.usefixtures("lab_rights")
def test_a_few_steps_in_the_lab(capsys: pytest.CaptureFixture[str]) -> None:
    methods = ["no-communication", "torch-ddp", "torch-power-sgd", "gs-sgd-paper", "dense-bf16"]
    size = ["--models", "mlp", "--ranks", "2", "--rates", "100mbit"]
    code = step_main(
        [*size, "--seconds", "0.01", "--steps", "2", "--methods", *methods, "--json", "-"]
    )
    report = json.loads(capsys.readouterr().out)
    assert code == 0 and report["schema"] == 1
    cells = {cell["method"]: cell for cell in report["cells"]}
    assert list(cells) == methods
    assert all(cell["correct"] and cell["steps"] >= 2 for cell in cells.values())
    # the digits' network has no buffers, so that nothing is sent but gradients
    assert cells["no-communication"]["interface_bytes"] < 1000
    assert cells["torch-ddp"]["interface_bytes"] > 4 * 4810
    assert cells["gs-sgd-paper"]["payload_bytes"] < cells["dense-bf16"]["payload_bytes"]
