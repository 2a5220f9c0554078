"""Pruning inside the trainer and by the commands that users type."""

import json
from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest
import torch

from gsdist.cli.main import main
from gsdist.cli.train import parse
from gsdist.compaction import max_abs_difference
from gsdist.compaction.export import load_compact
from gsdist.errors import CheckpointError, ConfigError, UnsupportedSetup
from gsdist.models import build_model
from gsdist.reducers import DenseConfig
from gsdist.training import RunConfig, TrainConfig, Trainer, detect_launch, process_group
from gsdist.workloads import ClassificationConfig, ClassificationWorkload
from gsdist.workloads.distillation import KdConfig, KdWorkload
from gsdist.workloads.pruning import PRESETS, PruningConfig
from gsdist.workloads.weights import read_weights

TRAIN = TrainConfig(steps=4, batch_size=32, progress=False)
SMALL = {"model": "resnet8-narrow", "data": "digits", "augment": False}


@pytest.fixture(autouse=True)
def _plain_process(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def train(folder, workload, pruning, **options):
    options = {"run_dir": folder, "save_model": folder / "model.pt"} | options
    run = RunConfig(
        train=replace(TRAIN, **options),
        reducer=DenseConfig(),
        workload_name=workload.name,
        workload=workload.config,
        pruning=pruning,
    )
    with process_group(detect_launch({}), timedelta(seconds=30)):
        return Trainer(run, workload).run()


def digits():
    return ClassificationWorkload(ClassificationConfig(**SMALL))


def empty_network():
    return build_model("resnet8-narrow", num_classes=10, in_channels=1)


def test_a_student_is_pruned_while_it_is_taught(tmp_path):
    torch.manual_seed(0)
    torch.save(empty_network().state_dict(), tmp_path / "teacher.pt")
    config = KdConfig(**SMALL, teacher="resnet8-narrow", teacher_weights=tmp_path / "teacher.pt")
    summary = train(tmp_path / "run", KdWorkload(config), replace(PRESETS["sfp"], rate=0.5))
    assert 0.3 < summary.metrics["macs_ratio"] < 0.5
    weights = read_weights(tmp_path / "run" / "model.pt")["stages.2.0.conv1.weight"]
    assert int((weights.flatten(1) == 0).all(1).sum()) == 8


def test_the_penalty_on_scales_acts_until_the_selection(tmp_path):
    def scales(sparsity, **more):
        folder = tmp_path / f"{sparsity}{len(more)}"
        config = replace(PRESETS["slimming"], sparsity=sparsity, **more)
        train(folder, digits(), config, learning_rate=0.01)
        state = read_weights(folder / "model.pt")
        return torch.cat([v for n, v in state.items() if n.endswith("norm1.weight")])

    without, with_it = scales(0.0), scales(0.5)
    # Four steps of at most 0.01 with momentum and a penalty of 0.5 take off about 0.05.
    kept = (without != 0) & (with_it != 0)
    assert 0.02 < float((without - with_it)[kept].mean()) < 0.08


def test_pruning_begins_with_the_weights_of_a_file(tmp_path):
    torch.manual_seed(5)
    dense = empty_network()
    torch.save(dense.state_dict(), tmp_path / "dense.pt")
    config = replace(PRESETS["l1"], pretrained=tmp_path / "dense.pt")
    train(tmp_path / "run", digits(), config, learning_rate=1e-9, weight_decay=0.0, steps=1)
    weight = read_weights(tmp_path / "run" / "model.pt")["stages.1.0.conv1.weight"]
    expected = dense.get_parameter("stages.1.0.conv1.weight").detach().clone()
    expected[expected.abs().sum((1, 2, 3)).argsort()[:3]] = 0
    torch.testing.assert_close(weight, expected, rtol=0, atol=1e-7)
    assert len(config.pretrained_sha256) == 64
    torch.save({}, tmp_path / "dense.pt")
    with pytest.raises(CheckpointError, match="expected"):
        replace(config, rate=0.5)


def test_metrics_before_and_after_the_masks_are_recorded(tmp_path):
    config = replace(PRESETS["sfp"], rate=0.9, evaluate_unmasked=True)
    summary = train(tmp_path, digits(), config)
    assert summary.metrics["unmasked_loss"] != summary.metrics["loss"]


def test_what_cannot_be_pruned_is_refused(tmp_path):
    for settings, reason in (
        ({"model": "mlp"}, "no convolution"),
        ({"norm": "group"}, "GroupNorm"),
    ):
        workload = ClassificationWorkload(ClassificationConfig(**{**SMALL, **settings}))
        with pytest.raises(UnsupportedSetup, match=reason):
            train(tmp_path, workload, PRESETS["sfp"])
    with pytest.raises(UnsupportedSetup, match="outer_interval"):
        train(tmp_path, digits(), PRESETS["sfp"], outer_interval=2)


QUICK = ["--data", "digits", "--steps", "2", "--batch-size", "16", "--no-progress"]


@pytest.mark.parametrize(
    ("method", "layout"),
    [
        (["asfp", "--prune.rate", "0.5"], "scatter"),
        (["cpmc", "--prune.target", "macs", "--prune.compact-at", "0.5", "--steps", "100"], None),
    ],
)
def test_from_training_to_a_compact_network_by_commands(method, layout, tmp_path, capsys):
    pytest.importorskip("safetensors")
    run, small = tmp_path / "run", tmp_path / "small"
    arguments = ["classification", "--model", "resnet8-narrow", *QUICK, "--reducer", "dense"]
    arguments += ["--run-dir", str(run), "--save-model", str(run / "model.pt")]
    assert main(["train", *arguments, "--prune", *method, "--json", "-"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["macs_ratio"] < 0.65

    options = ["--sensitivity", "0.5"] if layout else []
    assert main(["compact", *options, str(run), str(small)]) == 0
    printed = capsys.readouterr().out
    assert f"({summary['macs_ratio']:.1%})" in printed
    assert (small / "layers.svg").read_text().startswith("<svg")
    images = torch.randn(4, 1, 8, 8)
    model = load_compact(small, lambda _: empty_network(), (images,))
    assert sum(p.numel() for p in model.parameters()) < 0.9 * 5142
    if layout is not None:
        masked = empty_network()
        masked.load_state_dict(read_weights(run / "model.pt"))
        assert max_abs_difference(masked, model, (images,)) < 1e-12
    else:
        saved = read_weights(run / "model.pt")
        assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())
        assert main(["compact", "--layout", "scatter", str(run), str(small)]) != 0


def test_pfgdf_is_searched_layer_by_layer_and_trained_to_the_end(tmp_path, capsys):
    run, found = tmp_path / "run", tmp_path / "found"
    arguments = ["train", "classification", "--model", "resnet8-narrow", "--data", "digits"]
    arguments += ["--epochs", "1", "--batch-size", "512", "--reducer", "dense", "--no-progress"]
    arguments += ["--run-dir", str(run), "--save-model", str(run / "model.pt")]
    assert main(arguments) == 0
    # Whatever is lost is little enough, so that the narrowest interval is taken everywhere.
    assert main(["pfgdf", "--loss", "100", "--learning-rate", "1e-9", str(run), str(found)]) == 0
    assert capsys.readouterr().err.count("kept") == 3

    before, after = read_weights(run / "model.pt"), read_weights(found / "model.pt")
    layers = [f"stages.{stage}.0.conv1" for stage in range(3)]
    for layer in layers:
        norms = before[f"{layer}.weight"].double().abs().sum((1, 2, 3))
        deviation = (norms - norms.mean()).abs() / norms.std(correction=0)
        inside = deviation <= max(0.2, float(deviation.min()))  # no layer is left empty
        expected = before[f"{layer}.weight"] * inside.view(-1, 1, 1, 1)
        torch.testing.assert_close(after[f"{layer}.weight"], expected, rtol=0, atol=1e-5)
        assert not inside.all()

    config = ["--config", str(found / "config.toml")]
    settings, _ = parse("classification", config)
    assert settings.pruning.intervals == tuple(f"{layer}=0.2" for layer in layers)
    assert main(["train", "classification", *config]) == 0
    trained = read_weights(found / "run" / "model.pt")
    for layer in layers:
        zero = [weights[f"{layer}.weight"].flatten(1).any(1) for weights in (after, trained)]
        assert torch.equal(*zero) and not torch.equal(
            after[layer + ".weight"], trained[layer + ".weight"]
        )

    assert main(["pfgdf", str(tmp_path), str(found)]) == 69


def test_settings_of_no_run_are_refused(tmp_path, capsys):
    (tmp_path / "pruning.json").write_text('{"granularity": "filter"}')
    for text, found in (("[train]\n", "None"), ('[workload]\nname = "weather"\n', "'weather'")):
        (tmp_path / "config.toml").write_text(text)
        for command in ("compact", "pfgdf"):
            assert main([command, str(tmp_path), str(tmp_path / "small")]) == 69
            assert f"names the workload {found}" in capsys.readouterr().err


def test_runs_that_pruned_nothing_are_refused(tmp_path, capsys):
    assert main(["compact", str(tmp_path), str(tmp_path / "small")]) == 69
    assert "finished run that pruned" in capsys.readouterr().err


def test_written_settings_bring_pruning_back(tmp_path):
    parsed = partial(parse, "classification")
    run, _ = parsed(["--prune", "ghfp", "--prune.rate", "0.3", "--prune.softness", "0.5"])
    assert run.pruning == replace(PRESETS["ghfp"], rate=0.3, softness=0.5)
    (tmp_path / "config.toml").write_text(run.to_toml())
    again, _ = parsed(["--config", str(tmp_path / "config.toml")])
    assert again.pruning == run.pruning and again.fingerprint() == run.fingerprint()
    other, _ = parsed(["--config", str(tmp_path / "config.toml"), "--prune", "hfp"])
    assert other.pruning == PRESETS["hfp"]
    assert parsed([])[0].pruning is None
    with pytest.raises(ConfigError, match="--prune takes one of sfp"):
        parsed(["--prune", "best"])


def test_a_longer_run_is_another_course_when_it_prunes():
    train = replace(TRAIN, schedule="constant")
    runs = [
        RunConfig(
            train=replace(train, steps=steps),
            reducer=DenseConfig(),
            workload_name="classification",
            workload=ClassificationConfig(**SMALL),
            pruning=pruning,
        )
        for pruning in (None, PruningConfig())
        for steps in (4, 8)
    ]
    prints = [run.fingerprint() for run in runs]
    assert prints[0] == prints[1] and prints[2] != prints[3]
