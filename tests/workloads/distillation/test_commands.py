"""From teacher to stripped student by the commands that users type."""

import json

import pytest
import torch

from gsdist.cli.main import main
from gsdist.cli.train import parse
from gsdist.errors import ConfigError
from gsdist.models import build_model

QUICK = ["--data", "digits", "--steps", "2", "--batch-size", "16", "--no-progress"]
NETWORKS = ["--model", "resnet8-narrow", "--teacher", "resnet8-narrow"]


@pytest.fixture(autouse=True)
def _plain_process(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_a_teacher_is_saved_teaches_and_its_student_is_stripped(tmp_path, capsys):
    teacher, student = str(tmp_path / "teacher.pt"), str(tmp_path / "student.pt")
    run = ["--run-dir", str(tmp_path / "run"), "--reducer", "dense"]
    train = ["train", "hsakd-teacher", *NETWORKS[:2], *QUICK, *run, "--save-model", teacher]
    assert main(train) == 0
    learn = ["train", "hsakd-student", *NETWORKS, *QUICK, *run, "--teacher-weights", teacher]
    capsys.readouterr()
    assert main([*learn, "--save-model", student, "--json", "-"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert len(summary["config"]["workload"]["teacher_sha256"]) == 64
    assert main(["compact", "--strip", student, str(tmp_path / "small.pt")]) == 0
    network = build_model("resnet8-narrow", num_classes=10, in_channels=1)
    network.load_state_dict(torch.load(tmp_path / "small.pt", weights_only=True))

    # The written settings demand the very teacher: another one is refused.
    torch.save({}, teacher)
    again = ["train", "hsakd-student", "--config", str(tmp_path / "run" / "config.toml")]
    assert main(again) != 0


def test_a_pair_begins_with_published_settings_that_options_change():
    run, _ = parse("hsakd-student", ["--pair", "vgg13:mobilenetv2", "--epochs", "3"])
    assert (run.workload.model, run.workload.teacher) == ("mobilenetv2-half", "vgg13-cifar")
    assert (run.workload.data, run.train.batch_size) == ("cifar100", 64)
    assert (run.train.learning_rate, run.train.epochs, run.train.nesterov) == (0.01, 3, True)
    with pytest.raises(ConfigError, match=r"pair='vgg13:mobilenetv2' is for classification, kd"):
        parse("mcl-moco", ["--pair", "vgg13:mobilenetv2"])


@pytest.mark.parametrize(
    ("workload", "options"),
    [
        ("mcl", ["--images-per-class", "4"]),
        ("mcl-memory-bank", ["--negatives", "8"]),
        ("mcl-moco", ["--queue-length", "24"]),
        ("hssakd-online", []),
    ],
)
def test_a_resumed_run_ends_like_an_uninterrupted_one(workload, options, tmp_path):
    def train(name, steps):
        folder = tmp_path / name
        arguments = ["train", workload, *NETWORKS[:2], *QUICK, *options, "--reducer", "dense"]
        arguments += ["--schedule", "constant", "--steps", steps, "--run-dir", str(folder)]
        arguments += ["--checkpoint-every", "2", "--resume", "--save-model", f"{folder}.pt"]
        assert main(arguments) == 0
        return torch.load(f"{folder}.pt", weights_only=True)

    whole = train("whole", "4")
    train("parts", "2")
    resumed = train("parts", "4")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert any({"heads", "branches", "queue"} & set(name.split(".")) for name in whole)


@pytest.mark.parametrize(
    ("workload", "option"),
    [
        ("hsakd-teacher", "--backbone-weights"),
        ("linear-transfer", "--weights"),
        ("dkd", "--teacher-weights"),
        ("dist", "--teacher-weights"),
    ],
)
def test_what_learns_from_a_plain_network_trains(workload, option, tmp_path):
    weights = tmp_path / "plain.pt"
    plain = build_model("resnet8-narrow", num_classes=10, in_channels=1)
    torch.save(plain.state_dict(), weights)
    networks = NETWORKS if option == "--teacher-weights" else NETWORKS[:2]
    run = ["--run-dir", str(tmp_path), "--reducer", "gs-sgd", "--reducer.compression", "2"]
    if workload == "linear-transfer":
        run[2:] = ["--reducer", "dense"]  # one layer, too small to compress
    assert main(["train", workload, *networks, *QUICK, *run, option, str(weights)]) == 0
