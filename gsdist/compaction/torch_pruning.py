"""Cut channels by the dependency graph of torch-pruning instead of our own.

It follows channels through autograd, so it knows more operations than `trace_channels`, and it mistakes
some (channel shuffles) without a word: verify what it returns.
"""

import copy
from typing import Any

import torch
from torch import nn

from gsdist.compaction.groups import ChannelGroup
from gsdist.compaction.plan import Plan
from gsdist.errors import ConfigError, UnsupportedSetup

__all__ = ["cut_by_torch_pruning"]


def cut_by_torch_pruning(
    model: nn.Module, groups: list[ChannelGroup], plan: Plan, example: tuple[Any, ...]
) -> nn.Module:
    """Return a copy of the network without the channels that the plan does not keep.

    Args:
        model: the network; left as it is.
        groups: its groups for the plan's layout, of one convolution each or of several alike.
        plan: of layout "internal" or "stage".
        example: arguments of a call.

    Raises:
        ConfigError: layout "scatter", which torch-pruning does not know, or a plan of another network.
        UnsupportedSetup: the package torch-pruning is not installed.
    """
    if plan.layout == "scatter":
        raise ConfigError("torch-pruning restores no sums; choose layout internal or stage")
    try:
        import torch_pruning
    except ImportError as error:
        raise UnsupportedSetup("pip install 'gsdist[prune]' for torch-pruning") from error
    masks = plan.masks(groups)
    smaller = copy.deepcopy(model).eval()
    dependencies = torch_pruning.DependencyGraph()
    with torch.enable_grad():  # which it traces
        dependencies.build_dependency(smaller, example_inputs=example)
    for group in groups:
        if group.name in masks:
            first = next(part for part in group.slices if part.module == group.name)
            gone = first.positions_of(~masks[group.name]).tolist()
            layer = smaller.get_submodule(group.name)
            dependencies.get_pruning_group(
                layer, torch_pruning.prune_conv_out_channels, idxs=gone
            ).prune()
    return smaller.train(model.training)
