"""Small networks, random statistics and masks that tests of pruning and compaction share."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from gsdist.compaction import ChannelGroup


class Chain(nn.Module):
    """conv - norm - conv - norm - conv - norm - linear."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        widths = (1, 8, 6, 10)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias), nn.BatchNorm2d(outputs)]
            layers += [nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(10 * 16, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).flatten(1))


class Residual(nn.Module):
    """A stem and one block whose inner convolution can be pruned alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.inner, self.inner_norm = nn.Conv2d(6, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.last, self.last_norm = nn.Conv2d(5, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.classifier = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        stem = self.stem_norm(self.stem(images)).relu()
        block = self.last_norm(self.last(self.inner_norm(self.inner(stem)).relu()))
        return self.classifier((stem + block).relu().mean((2, 3)))


class Concatenated(nn.Module):
    """Two convolutions side by side, normalised together behind the concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 5, 1)
        self.norm = nn.BatchNorm2d(9)
        self.last = nn.Conv2d(9, 7, 3, stride=2)
        self.classifier = nn.Linear(7, 3)

    def forward(self, images: Tensor) -> Tensor:
        both = torch.cat([self.left(images), self.right(images)], 1)
        return self.classifier(self.last(self.norm(both).relu()).mean((2, 3)))


class Depthwise(nn.Module):
    """An expansion, a depthwise convolution with shift, and a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.expand_norm = nn.Conv2d(1, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.project = nn.Conv2d(8, 5, 1)
        self.classifier = nn.Linear(5, 3)

    def forward(self, images: Tensor) -> Tensor:
        wide = self.norm(self.depthwise(self.expand_norm(self.expand(images)).relu())).relu()
        return self.classifier(self.project(wide).mean((2, 3)))


IMAGES = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(5))


def randomise_norms(model: nn.Module) -> None:
    """Draw statistics, scales and shifts as after training."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.3)
            nn.init.normal_(module.running_mean, 0.0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)


def mask_half(
    model: nn.Module, groups: list[ChannelGroup], *, norms: bool = True
) -> dict[str, Tensor]:
    """Zero a random half of every group's channels, with or without their norms; return what is kept."""
    kept = {}
    for group in groups:
        gone = group.largest_removal(torch.randperm(group.size)[: group.size // 2])
        kept[group.name] = torch.ones(group.size, dtype=torch.bool)
        kept[group.name][gone] = False
        for part in group.of_role("out", "depthwise", *(["norm"] if norms else [])):
            module = model.get_submodule(part.module)
            rows = part.positions_of(~kept[group.name])
            with torch.no_grad():
                if part.role != "depthwise":
                    module.weight[rows] = 0
                if module.bias is not None:
                    module.bias[rows] = 0
    return kept
