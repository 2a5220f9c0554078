"""Hold what the CIFAR networks share: 3x3 convolutions and their initialisation."""

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ChannelPadding", "conv3x3", "initialise_convolutions"]


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """Make a padded 3x3 convolution without bias."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def initialise_convolutions(model: nn.Module) -> None:
    """Draw the weights of all convolutions from He's normal distribution, fan-out mode."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class ChannelPadding(nn.Module):
    """Take every `stride`-th row and column and add zero channels on both sides.

    Args:
        before: zero channels before the input's.
        after: zero channels behind them.
        stride: of rows and columns.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.before = before
        self.after = after
        self.stride = stride

    def forward(self, features: Tensor) -> Tensor:
        """Turn `(N, C, H, W)` into `(N, before + C + after, H / stride, W / stride)`."""
        strided = features[:, :, :: self.stride, :: self.stride]
        return F.pad(strided, (0, 0, 0, 0, self.before, self.after))
