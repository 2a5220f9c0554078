"""Records on disk, before and after a crash; summaries and progress."""

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest

from gsdist.errors import DataError
from gsdist.training.metrics import JsonLinesWriter, open_writers, read_records
from gsdist.training.progress import LineProgress, SilentProgress, open_progress
from gsdist.training.summary import RunSummary, curves_of, over_seeds, read_summaries


def record(step: int, **values: Any) -> dict[str, Any]:
    return {"kind": "train", "step": step, **values}


def write_all(path: Path, steps: range, **options: Any) -> None:
    writer = JsonLinesWriter(path, **options)
    for step in steps:
        writer.write(record(step, loss=1.0 / step))
    writer.close()


def test_records_are_one_json_object_per_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_all(path, range(1, 4))
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        record(step, loss=1.0 / step) for step in (1, 2, 3)
    ]


def test_records_are_on_disk_at_once(tmp_path: Path) -> None:
    writer = JsonLinesWriter(tmp_path / "metrics.jsonl")
    writer.write(record(1))
    assert [r["step"] for r in read_records(tmp_path / "metrics.jsonl")] == [1]
    writer.close()


def test_resuming_drops_what_the_killed_run_did_after_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_all(path, range(1, 9))
    with path.open("a") as file:
        file.write('{"kind": "train", "st')  # the crash cut the last line off
    write_all(path, range(6, 8), after_step=5)
    assert [r["step"] for r in read_records(path)] == [1, 2, 3, 4, 5, 6, 7]


def test_a_fresh_run_replaces_the_records(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_all(path, range(1, 9))
    write_all(path, range(1, 3))
    assert [r["step"] for r in read_records(path)] == [1, 2]


def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    writers = open_writers(tmp_path)
    for writer in writers:
        writer.write(record(7, loss=0.5, payload_bytes=12))
        writer.close()
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["train/loss", "train/payload_bytes"]
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(7, 0.5)]


def test_wandb_gets_every_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    writers = open_writers(tmp_path, wandb_project="links", settings={"train": {"seed": 31}})
    for writer in writers:
        writer.write(record(7, loss=0.515625, payload_bytes=12))
        writer.close()
    (stored,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    missing = {b"links", b"train/loss", b"0.515625", b"train/payload_bytes", b"seed", b"31"}
    limit = time.monotonic() + 30
    while missing and time.monotonic() < limit:  # a process of wandb's own writes the file
        content = stored.read_bytes()
        missing = {expected for expected in missing if expected not in content}
        time.sleep(0.1)
    assert not missing


def make_summary(**changes: Any) -> RunSummary:
    values: dict[str, Any] = {
        "workload": "classification",
        "model": "mlp",
        "data": "digits",
        "reducer": "gs-sgd",
        "world_size": 2,
        "num_parameters": 100,
        "steps": 10,
        "steps_per_s": 5.0,
        "primary_metric": "accuracy",
        "metrics": {"accuracy": 0.75, "loss": 0.5},
        "payload_bytes_run": 800,
        "dense_bytes_run": 4000,
        "payload_bytes_last_step": 40,
        "skipped_steps": 0,
        "phase_seconds": {"forward": 1.0, "backward": 3.0, "exchange: encode": 1.0},
        "curves": {"train": {"step": [1, 2], "loss": [2.0, 1.0], "payload_bytes": [400, 800]}},
        "config": {"train": {"seed": 0}},
        "config_hash": "0123",
        "versions": {"gsdist": "0", "torch": "2"},
    }
    return RunSummary(**(values | changes))


def test_summary_says_what_follows_and_reads_back(tmp_path: Path) -> None:
    summary = make_summary()
    content = json.loads(summary.to_json())
    expected = {
        "accuracy": 0.75,
        "compression": 5.0,
        "payload_bytes_per_step": 80.0,
        "dense_bytes_per_step": 400.0,
    }
    assert {name: content[name] for name in expected} == expected
    (tmp_path / "summary.json").write_text(summary.to_json())
    (tmp_path / "many.json").write_text(json.dumps([content, content]))
    assert read_summaries(tmp_path) == [summary]
    assert read_summaries(tmp_path / "many.json") == [summary, summary]


@pytest.mark.parametrize("text", [None, "{", "{}", "[1]", "3"])
def test_what_is_no_summary_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "summary.json").write_text(text)
    with pytest.raises(DataError, match=r"summary\.json"):
        read_summaries(tmp_path)


def test_curves_collect_by_kind() -> None:
    records = [
        record(1, loss=3.0),
        {"kind": "evaluation", "step": 1, "accuracy": 0.1},
        record(2, loss=2.0),
    ]
    assert curves_of(records) == {
        "train": {"step": [1, 2], "loss": [3.0, 2.0]},
        "evaluation": {"step": [1], "accuracy": [0.1]},
    }


def test_plain_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    progress = open_progress(100, enabled=True, label="dense", stream=stream)
    assert isinstance(progress, LineProgress)
    for step in range(1, 101):
        progress.advance(step, 0.5)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 20
    assert lines[-1].startswith("[dense] step 100/100  loss 0.5000")
    assert isinstance(open_progress(100, enabled=False, label="x"), SilentProgress)


def test_runs_of_several_seeds_are_averaged() -> None:
    runs = [
        make_summary(metrics={"accuracy": value}, config={"train": {"seed": seed}})
        for seed, value in ((4, 0.5), (7, 0.8))
    ]
    found = over_seeds(runs)
    assert found["accuracy"] == pytest.approx(0.65)
    assert found["standard_deviation"]["accuracy"] == pytest.approx(0.3 / 2**0.5)
    assert found["seeds"] == [4, 7]
    assert found["seconds"] == 4.0  # phases of the exchange lie inside backward
    assert [run["accuracy"] for run in found["runs"]] == [0.5, 0.8]
    assert over_seeds(runs[:1])["standard_deviation"] == {"accuracy": 0.0}


def test_a_summary_without_a_picture_reads_back(tmp_path: Path) -> None:
    content = json.loads(make_summary().to_json())
    del content["picture"]  # as runs before there were pictures wrote it
    (tmp_path / "summary.json").write_text(json.dumps(content))
    assert read_summaries(tmp_path)[0].picture is None
