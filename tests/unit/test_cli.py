"""The command line as users meet it: help, refusals, exit codes, files."""

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from gsdist.cli.main import main
from gsdist.cli.train import parse
from gsdist.reducers import GsSgdConfig
from gsdist.training.summary import read_summaries

TRAIN = ["train", "classification"]
QUICK = [*("--data", "digits", "--model", "mlp", "--batch-size", "64", "--no-progress")]


@pytest.fixture(autouse=True)
def _plain_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    shown = warnings.showwarning
    yield
    warnings.showwarning = shown


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_needs_no_torch_and_fits_the_screen() -> None:
    script = (
        "import sys\n"
        "from gsdist.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    for command in ("train", "doctor", "data", "report", "compact"):
        assert re.search(rf"^ +{command} ", done.stdout, re.MULTILINE)
    assert all(len(line) <= 80 for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--help"],
        [*TRAIN, "--help"],
        ["plan", "-h"],
        ["doctor", "-h"],
        ["data", "-h"],
        ["report", "-h"],
        ["compact", "-h"],
    ],
)
def test_every_command_explains_itself(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(arguments, capsys)
    assert code == 0 and "usage: gsdist " + arguments[0] in out
    assert all(len(line) <= 80 for line in out.splitlines())


def test_help_lists_the_options_of_the_chosen_reducer(capsys: pytest.CaptureFixture[str]) -> None:
    _, with_sketch, _ = run([*TRAIN, "--reducer", "gs-sgd", "--help"], capsys)
    _, dense, _ = run([*TRAIN, "--reducer=dense", "--help"], capsys)
    assert "--reducer.compression FLOAT" in with_sketch and "--learning-rate" in with_sketch
    assert "--reducer.compression FLOAT" not in dense and "--reducer.wire-dtype" in dense


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([*TRAIN, "--densty", "1"], "--densty"),
        ([*TRAIN, "--reducer", "dense", "--reducer.density", "0.1"], "--reducer.density"),
        ([*TRAIN, "--epochs", "many"], "many"),
        ([*TRAIN, "--reducer", "magic"], "magic"),
        ([*TRAIN, *QUICK, "--batch-size", "0"], "batch_size=0"),
        ([*TRAIN, *QUICK, "--model", "resnet21"], "resnet21"),
        ([*TRAIN, *QUICK, "--batch-size", "5000"], "lower batch_size"),
        ([*TRAIN, *QUICK, "--reducer.rows", "4"], "rows"),
        (["train", "cooking"], "cooking"),
        (["data", "mnist3"], "mnist3"),
        (["doctor", "--loud"], "--loud"),
        (["bake"], "bake"),
        ([*TRAIN, "--config", "/nowhere.toml"], "/nowhere.toml"),
    ],
)
def test_mistakes_get_one_message_and_exit_code_2(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(arguments, capsys)
    assert code == 2
    assert complaint in out + err and "Traceback" not in out + err


def test_errors_have_exit_codes_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = run(["report", str(tmp_path)], capsys)
    assert code == 71 and err.startswith("gsdist: error: no run summary at")
    code, _, err = run(
        [*TRAIN, "--data", "cifar10", "--data-root", str(tmp_path), "--no-progress"], capsys
    )
    assert code == 71 and "gsdist data cifar10" in err
    code, _, err = run(["--debug", "report", str(tmp_path)], capsys)
    assert code == 71 and "Traceback" in err
    monkeypatch.setenv("RANK", "0")
    code, _, err = run([*TRAIN, *QUICK], capsys)
    assert code == 2 and "WORLD_SIZE" in err


def test_training_writes_its_files_and_prints_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*TRAIN, *QUICK, "--steps", "30", "--run-dir", str(tmp_path), "--json", "-"]
    code, out, err = run([*arguments, "--reducer.min-numel", "100"], capsys)
    assert code == 0, err
    printed = json.loads(out)
    assert printed == json.loads((tmp_path / "summary.json").read_text())
    assert printed["data"] == "digits" and printed["world_size"] == 1 and printed["steps"] == 30
    assert printed["accuracy"] > 0.5
    assert 0 < printed["payload_bytes_run"] < printed["dense_bytes_run"]
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "metrics.jsonl").open()]
    assert kinds.count("train") == 3 and "evaluation" in kinds


def test_a_run_can_be_repeated_from_the_settings_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--steps",
        "12",
        "--nesterov",
        "--reducer",
        "gs-sgd-paper",
        "--reducer.min-numel",
        "100",
    ]
    options += ["--reducer.density-ladder", "0.5", "0.25", "--reducer.density-ladder-steps", "2"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert run([*TRAIN, *QUICK, *options, "--run-dir", str(first)], capsys)[0] == 0
    config = ["--config", str(first / "config.toml")]
    code, _, err = run([*TRAIN, *config, "--run-dir", str(second)], capsys)
    assert code == 0, err
    one, other = read_summaries(first)[0], read_summaries(second)[0]
    assert one.config_hash == other.config_hash and one.metrics == other.metrics
    # An option wins over the file; another reducer does not take over the settings of this one.
    code, _, err = run(
        [*TRAIN, *config, "--reducer", "dense", "--steps", "3", "--run-dir", str(second)], capsys
    )
    changed = read_summaries(second)[0]
    assert code == 0 and changed.reducer == "dense" and changed.steps == 3, err


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[train]\nepoks = 3\n", "--epoks"),
        ("[train]\nepochs = 'x'\n", "x"),
        ("[trian]\n", "trian"),
        ("not toml", "not TOML"),
    ],
)
def test_mistakes_in_the_settings_file_are_refused(
    text: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "my.toml"
    file.write_text(text)
    code, out, err = run([*TRAIN, "--config", str(file)], capsys)
    assert code == 2 and complaint in out + err and "my.toml" in out + err


def test_report_compares_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for reducer in ("dense", "gs-sgd"):
        options = ["--reducer", reducer, "--steps", "12", "--run-dir", str(tmp_path / reducer)]
        if reducer == "gs-sgd":
            options += ["--reducer.min-numel", "100"]
        assert run([*TRAIN, *QUICK, *options], capsys)[0] == 0
    output = tmp_path / "page.html"
    runs = [str(tmp_path / "dense"), str(tmp_path / "gs-sgd")]
    code, out, _ = run(["report", *runs, "--output", str(output)], capsys)
    assert code == 0 and str(output) in out
    assert "times fewer payload bytes" in output.read_text()


def test_doctor_passes_here(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(["doctor", "--json"], capsys)
    findings = json.loads(out)
    assert code == 0 and findings["self_test"] == {"passed": True, "failure": None}
    assert findings["backends"]["gloo"] is True and findings["packages"]["torch"]


def test_torchrun_trains_on_two_workers(tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "gsdist", *TRAIN, *QUICK, "--steps", "5", "--reducer", "dense"),
        *("--run-dir", str(tmp_path)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    assert read_summaries(tmp_path)[0].world_size == 2
    assert done.stdout.count("on 2 worker(s)") == 1


@pytest.mark.parametrize(
    ("options", "whole_gradients"),
    [
        (["--optimizer", "adamw"], 20),
        (["--optimizer", "adamw", "--reducer.warmup-steps", "7"], 7),
        (["--optimizer", "adamw", "--outer-interval", "16"], 0),
        ([], 0),
    ],
)
def test_adamw_begins_with_whole_gradients(options: list[str], whole_gradients: int) -> None:
    settings, _ = parse("language", options)
    assert isinstance(settings.reducer, GsSgdConfig)
    assert settings.reducer.warmup_steps == whole_gradients
