"""torch-pruning, which follows channels in another way, cuts the same network."""

import pytest
import torch

from gsdist.compaction import coupling_of, cut_channels, plan_from_zeros, trace_channels, verify
from gsdist.errors import ConfigError
from gsdist.models import build_model
from tests.workloads.pruning.networks import IMAGES, Chain, mask_half, randomise_norms

torch_pruning = pytest.importorskip("torch_pruning")

from gsdist.compaction.torch_pruning import cut_by_torch_pruning  # noqa: E402


@pytest.mark.parametrize("layout", ["internal", "stage"])
@pytest.mark.parametrize("name", ["resnet8", "mobilenetv2-half", "chain"])
def test_both_ways_lead_to_the_same_network(name, layout):
    torch.manual_seed(0)
    masked = Chain() if name == "chain" else build_model(name, num_classes=10, in_channels=1)
    images = (IMAGES,) if name == "chain" else (torch.randn(1, 1, 16, 16),)
    randomise_norms(masked)
    graph = trace_channels(masked, images)
    groups = graph.channel_groups(coupling_of(layout))
    mask_half(masked, groups)
    plan = plan_from_zeros(masked, graph, layout)
    ours = cut_channels(masked, graph, plan).model.state_dict()
    model = cut_by_torch_pruning(masked, groups, plan, images)
    theirs = model.state_dict()
    assert verify(masked, model, images) < 1e-12
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_it_restores_no_sums():
    graph = trace_channels(Chain(), (IMAGES,))
    plan = plan_from_zeros(Chain(), graph, "scatter")
    with pytest.raises(ConfigError, match="restores no sums"):
        cut_by_torch_pruning(Chain(), graph.channel_groups(), plan, (IMAGES,))
