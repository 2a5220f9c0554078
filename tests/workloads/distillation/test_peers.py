"""Peers: published sizes, shared stages, and each of them on its own."""

import pytest
import torch

from gsdist.errors import ConfigError
from gsdist.models import build_model, build_staged_model
from gsdist.models.branches import strip
from gsdist.models.peers import ContrastPeers
from gsdist.workloads.distillation import HssakdOnlineConfig, HssakdOnlineWorkload

SMALL = {"data": "digits", "norm": "group", "augment": False}


# Totals with 2 peers, and with 4 that share the first stage, as published, without the heads.
@pytest.mark.parametrize(
    ("name", "two", "four"),
    [
        ("resnet32", 945_512, 1_819_552),
        ("resnet56", 1_723_240, 3_318_944),
        ("wrn-16-2", 1_406_568, 2_712_864),
        ("wrn-40-2", 4_510_312, 8_697_632),
        ("wrn-28-4", 11_744_360, 22_679_776),
        ("shufflenetv2-stem3", 2_712_208, 5_331_752),
        ("shufflenetv2-half-stem3", 888_584, 1_754_272),
    ],
)
def test_peers_have_the_published_sizes(name, two, four):
    for peers, shared_stages, expected in ((2, 0, two), (4, 1, four)):
        with torch.device("meta"):
            networks = [build_staged_model(name, num_classes=100) for _ in range(peers)]
            width = networks[0].classifier.in_features
            model = ContrastPeers(networks, shared_stages=shared_stages)
            answers = model(torch.empty(2, 3, 32, 32))
        heads = peers * (width * 128 + 128 + 16_512)
        assert sum(p.numel() for p in model.parameters()) == expected + heads
        assert [answer.embedding.shape for answer in answers] == [(2, 128)] * peers


def test_shared_stages_answer_as_unshared_ones_with_equal_weights():
    networks = [build_staged_model("resnet8-narrow", num_classes=5) for _ in range(2)]
    networks[1].stem.load_state_dict(networks[0].stem.state_dict())
    networks[1].stages[0].load_state_dict(networks[0].stages[0].state_dict())
    images = torch.randn(2, 3, 16, 16)
    expected = [network.eval()(images) for network in networks]
    shared = ContrastPeers(networks, shared_stages=1).eval()(images)
    for logits, answer in zip(expected, shared, strict=True):
        torch.testing.assert_close(answer.logits, logits)
        torch.testing.assert_close(answer.embedding.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("shared_stages", [0, 1, 2])
def test_a_peer_on_its_own_answers_as_before(shared_stages):
    networks = [build_staged_model("resnet8-narrow", num_classes=5) for _ in range(2)]
    peers = ContrastPeers(networks, shared_stages=shared_stages)
    peers(torch.randn(8, 3, 16, 16))  # moves the running statistics
    images = torch.randn(2, 3, 16, 16)
    answers = peers.eval()(images)
    held = {f"peers.{name}": value for name, value in peers.state_dict().items()}
    for state in (peers.state_dict(), held | {"banks.0.slots": torch.ones(2, 128)}):
        for peer, answer in enumerate(answers):
            alone = build_model("resnet8-narrow", num_classes=5)
            alone.load_state_dict(strip(state, peer=peer + 1))
            torch.testing.assert_close(alone.eval()(images), answer.logits)
    with pytest.raises(ConfigError, match="there is no peer 3: these are the weights of 2 peers"):
        strip(peers.state_dict(), peer=3)


def test_a_peer_with_branches_loses_them():
    workload = HssakdOnlineWorkload(HssakdOnlineConfig(model="resnet8-narrow", **SMALL))
    model = workload.build_model()
    plain = build_model("resnet8-narrow", num_classes=10, in_channels=1, norm="group")
    plain.load_state_dict(strip(model.state_dict(), peer=2))
    images = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(plain(images), model(images)[1].logits)
