"""Show the stages of torchvision's ResNets, for ImageNet and with a stem for CIFAR-sized images."""

from torch import nn
from torchvision.models.resnet import ResNet

from gsdist.models.layers import conv3x3
from gsdist.models.staged import StagedNetwork

__all__ = ["TorchvisionResNet"]


class TorchvisionResNet(StagedNetwork):
    """Take over the layers of a torchvision ResNet of four stages.

    Args:
        resnet: a plain one (resnet18, 34, 50, 101, 152); its modules are used, not copied.
        small_images: whether a 3x3 convolution that keeps the resolution replaces the stem that divides
            it by 4.
    """

    def __init__(self, resnet: ResNet, *, small_images: bool) -> None:
        super().__init__()
        stages = [resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4]
        self._block = type(stages[0][0])
        self._blocks = [len(stage) for stage in stages]
        if small_images:
            first = conv3x3(3, 64)
            nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")
            self.stem = nn.Sequential(first, resnet.bn1, resnet.relu)
        else:
            self.stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool)
        self.stages = nn.Sequential(*stages)
        self.tail = self.make_tail()
        self.classifier = resnet.fc

    def make_stage(self, number: int, *, keep_shape: bool = False) -> nn.Sequential:
        """Build a stage with fresh weights."""
        width = 64 * 2**number
        channels = width * self._block.expansion
        before = 64 if number == 0 else channels // 2
        in_channels = channels if keep_shape else before
        stride = 1 if keep_shape or number == 0 else 2
        shortcut = None
        if stride != 1 or in_channels != channels:
            shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(channels),
            )
        first = self._block(in_channels, width, stride, shortcut)
        rest = [self._block(channels, width) for _ in range(self._blocks[number] - 1)]
        return nn.Sequential(first, *rest)
