"""Published settings: what they are for, that they can be built, and learning rates."""

import pytest
import torch

from gsdist.errors import ConfigError
from gsdist.models import build_staged_model, check_staged_model
from gsdist.models.branches import BranchedNetwork
from gsdist.training import TrainConfig
from gsdist.training.schedule import learning_rate_factor
from gsdist.workloads.distillation.presets import PAIRS, PEERS, preset


@pytest.mark.parametrize("name", PAIRS)
def test_both_networks_of_a_published_pair_have_branches_alike(name):
    with torch.device("meta"):
        models = [
            BranchedNetwork(build_staged_model(network, num_classes=100), 400)
            for network in (PAIRS[name].teacher, PAIRS[name].student)
        ]
        shapes = [
            [tuple(branch.shape) for branch in model(torch.empty(2, 3, 32, 32)).branches]
            for model in models
        ]
    assert shapes[0] == shapes[1]


def test_learning_rates_fall_at_the_published_epochs():
    settings = TrainConfig(**preset("wrn40-2:wrn16-2", "hsakd-student")[1])
    total = settings.epochs * 781  # steps; 50,000 images in batches of 64
    rates = [
        settings.learning_rate * learning_rate_factor(e * 781, config=settings, total_steps=total)
        for e in (0, 149, 150, 180, 210)
    ]
    assert rates == pytest.approx([0.05, 0.05, 0.005, 0.0005, 0.00005])
    cosine = TrainConfig(epochs=300)
    rates = [
        0.1 * learning_rate_factor(e * 390, config=cosine, total_steps=300 * 390)
        for e in (0, 150, 300)
    ]
    assert rates == pytest.approx([0.1, 0.05, 0.0])


def test_pairs_are_for_their_own_workloads():
    assert preset("vgg13:mobilenetv2", "kd")[1]["learning_rate"] == 0.01
    assert preset("vgg13:mobilenetv2", "hsakd-teacher")[1]["learning_rate"] == 0.05
    alone, _ = preset("vgg13:mobilenetv2", "classification")
    assert alone == {"model": "mobilenetv2-half", "data": "cifar100"}
    with pytest.raises(ConfigError, match=r"unknown pair 'a:b'; expected one of wrn40-2:wrn16-2"):
        preset("a:b", "kd")
    with pytest.raises(ConfigError, match=r"pair 'a:b' of mcl; expected one of resnet32:resnet32"):
        preset("a:b", "mcl")
    with pytest.raises(ConfigError, match=r"not 'linear-transfer'"):
        preset("vgg13:mobilenetv2", "linear-transfer")


@pytest.mark.parametrize("workload", PEERS)
def test_peers_have_published_settings_that_can_be_built(workload):
    for name, (model, _) in PEERS[workload].items():
        settings, training = preset(f"{name}:{name}", workload)
        assert settings == {"model": model, "data": "cifar100"}
        check_staged_model(settings["model"])
        TrainConfig(**training)
    assert preset("resnet32:resnet32", "mcl")[1]["epochs"] == 300


def test_the_pair_for_imagenet_has_its_own_recipe():
    settings, training = preset("resnet34:resnet18", "hsakd-student")
    assert settings == {"model": "resnet18", "teacher": "resnet34", "data": "imagenet"}
    config = TrainConfig(**training)
    rates = [
        config.learning_rate * learning_rate_factor(e * 10, config=config, total_steps=1000)
        for e in (0, 29, 30, 60, 90)
    ]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.001, 0.0001])
    assert (config.nesterov, config.weight_decay, config.batch_size) == (False, 1e-4, 256)
