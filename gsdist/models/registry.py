"""Build classification networks by name: gsdist's own for small images, else torchvision's."""

import difflib
import re
from collections.abc import Callable
from functools import partial
from types import MappingProxyType
from typing import Any, get_args

from torch import nn

from gsdist.errors import ConfigError
from gsdist.models.cifar_densenet import CifarDenseNet
from gsdist.models.cifar_resnet import CifarResNet, Shortcut, check_shortcut
from gsdist.models.cifar_vgg import CifarVgg16
from gsdist.models.mobilenet import HalfMobileNetV2
from gsdist.models.normalization import Normalization, replace_batch_norm
from gsdist.models.preactivation_resnet import PreActivationResNet
from gsdist.models.small_vgg import SmallVgg13
from gsdist.models.staged import StagedNetwork
from gsdist.models.wide_resnet import WideResNet

__all__ = [
    "Normalization",
    "build_model",
    "build_staged_model",
    "check_model",
    "check_staged_model",
    "model_names",
]

# Depths 50 and 152 are of the form 6n + 2, too, but those names belong to the ImageNet networks.
_CIFAR_RESNETS = {
    f"resnet{depth}": (depth, (16, 16, 32, 64)) for depth in (8, 14, 20, 32, 44, 56, 110)
} | {f"resnet{depth}x4": (depth, (32, 64, 128, 256)) for depth in (8, 32)}
_CIFAR_RESNETS["resnet8-narrow"] = (8, (4, 4, 8, 16))  # for 8x8 digits and tests
_WIDE_RESNET = re.compile(r"wrn-(\d+)-(\d+)")
_COMMON_WIDE_RESNETS = ("wrn-16-1", "wrn-16-2", "wrn-28-4", "wrn-28-10", "wrn-40-1", "wrn-40-2")
_MLP_WIDTH = 64
_TORCHVISION_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


def _shufflenet(version: str, *arguments: Any, **options: Any) -> nn.Module:
    # It takes a block from torchvision, which only runs that need it import.
    from gsdist.models import shufflenet

    model: nn.Module = getattr(shufflenet, version)(*arguments, **options)
    return model


_SMALL_STAGED_NETWORKS: MappingProxyType[str, Callable[..., nn.Module]] = MappingProxyType(
    {
        "vgg13-cifar": SmallVgg13,
        "mobilenetv2-half": HalfMobileNetV2,
        "mobilenetv2-half-stride2": partial(HalfMobileNetV2, stem_stride=2),
        "preresnet164": partial(PreActivationResNet, 164),
        "shufflenetv1": partial(_shufflenet, "ShuffleNetV1"),
        "shufflenetv2": partial(_shufflenet, "ShuffleNetV2"),
        "shufflenetv2-stem3": partial(_shufflenet, "ShuffleNetV2", stem_kernel=3),
        "shufflenetv2-half-stem3": partial(
            _shufflenet, "ShuffleNetV2", stem_kernel=3, widths=(48, 96, 192, 1024)
        ),
    }
)
"""Networks for small images that have no options and show their stages."""


def model_names() -> tuple[str, ...]:
    """List the names `build_model` takes; `wrn-D-K` stands for more than the common ones listed."""
    return (*_own_names(), *_torchvision_names())


def check_model(
    name: str, *, norm: Normalization = "batch", shortcut: Shortcut = "projection"
) -> None:
    """Refuse what `build_model` cannot build whatever the data; builds nothing.

    Raises:
        ConfigError: unknown name (lists the closest known ones) or option, or one that the network
            does not have.
    """
    _check_name(name)
    if norm not in get_args(Normalization):
        raise ConfigError(f"norm must be 'batch' or 'group', got {norm!r}")
    check_shortcut(shortcut)
    if shortcut != "projection" and name not in _CIFAR_RESNETS:
        raise ConfigError(f"shortcut={shortcut!r} is for CIFAR ResNets, model {name!r} is none")


def build_model(
    name: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: int | None = None,
    norm: Normalization = "batch",
    shortcut: Shortcut = "projection",
) -> nn.Module:
    """Build a classification network with fresh weights from torch's global generator.

    Args:
        name: `resnet{8,14,20,32,44,56,110}`, `resnet{8,32}x4`, `resnet8-narrow`, `resnet50-cifar`,
            `wrn-D-K`, `vgg{13,16}-cifar`, `mobilenetv2-half` (stem of stride 1) or
            `mobilenetv2-half-stride2`, `densenet40-cifar`, `preresnet164`, `shufflenetv1`,
            `shufflenetv2`, `shufflenetv2-stem3` or `shufflenetv2-half-stem3` (stem of size 3),
            `mlp` (one hidden layer of 64, for 8x8 digits and tests), or the name of a classification
            model of torchvision.
        num_classes: number of outputs.
        in_channels: channels of the images; torchvision's models take 3.
        image_size: height and width of the images; needed by `mlp` and torchvision's `vit_*`.
        norm: "group" replaces all batch normalisation.
        shortcut: for the CIFAR ResNets only.

    Raises:
        ConfigError: an unknown name, or a combination the network does not have.
    """
    check_model(name, norm=norm, shortcut=shortcut)
    if num_classes < 1:
        raise ConfigError(f"num_classes must be at least 1, got {num_classes}")
    model = _build(name, num_classes, in_channels, image_size, shortcut)
    return replace_batch_norm(model) if norm == "group" else model


def check_staged_model(
    name: str, *, norm: Normalization = "batch", shortcut: Shortcut = "projection"
) -> None:
    """Refuse what `build_staged_model` cannot build whatever the data; builds nothing.

    Raises:
        ConfigError: as `check_model`, or a network whose stages are not known.
    """
    check_model(name, norm=norm, shortcut=shortcut)
    known = [*_CIFAR_RESNETS, *_TORCHVISION_RESNETS, "resnet50-cifar", *_SMALL_STAGED_NETWORKS]
    if name not in known and not _WIDE_RESNET.fullmatch(name):
        raise ConfigError(
            f"model {name!r} does not show its stages; use wrn-D-K or one of {', '.join(known)}"
        )


def build_staged_model(
    name: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    norm: Normalization = "batch",
    shortcut: Shortcut = "projection",
) -> StagedNetwork:
    """Build a network that shows its stages; arguments as of `build_model`.

    torchvision's ResNets keep their weights' order and values but not their parameters' names.

    Raises:
        ConfigError: an unknown name, a network whose stages are not known, or a combination it does
            not have.
    """
    check_staged_model(name, norm=norm, shortcut=shortcut)
    model = build_model(
        name, num_classes=num_classes, in_channels=in_channels, norm=norm, shortcut=shortcut
    )
    if isinstance(model, StagedNetwork):
        return model
    from gsdist.models.torchvision_resnet import TorchvisionResNet

    return TorchvisionResNet(model, small_images=False)


def _check_name(name: str) -> None:
    if name in _own_names() or _WIDE_RESNET.fullmatch(name) or name in _torchvision_names():
        return
    close = difflib.get_close_matches(name, model_names(), n=5)
    hint = f"did you mean {', '.join(close)}?" if close else f"known are {', '.join(_own_names())}"
    raise ConfigError(
        f"unknown model {name!r}: {hint} "
        "(wrn-D-K with D = 6n + 4, and every classification model of torchvision, work too)"
    )


def _build(
    name: str, num_classes: int, in_channels: int, image_size: int | None, shortcut: Shortcut
) -> nn.Module:
    if name in _CIFAR_RESNETS:
        depth, widths = _CIFAR_RESNETS[name]
        return CifarResNet(
            depth, num_classes, in_channels=in_channels, widths=widths, shortcut=shortcut
        )
    if wide := _WIDE_RESNET.fullmatch(name):
        return WideResNet(
            int(wide[1]), int(wide[2]), num_classes=num_classes, in_channels=in_channels
        )
    if name in _SMALL_STAGED_NETWORKS:
        return _SMALL_STAGED_NETWORKS[name](num_classes, in_channels=in_channels)
    if name == "vgg16-cifar":
        return CifarVgg16(num_classes, in_channels=in_channels)
    if name == "densenet40-cifar":
        return CifarDenseNet(40, num_classes, in_channels=in_channels)
    if name == "resnet50-cifar":
        from gsdist.models.torchvision_resnet import TorchvisionResNet

        inner = _torchvision_model("resnet50", num_classes, in_channels, image_size)
        return TorchvisionResNet(inner, small_images=True)
    if name == "mlp":
        return _mlp(num_classes, in_channels, image_size)
    return _torchvision_model(name, num_classes, in_channels, image_size)


def _mlp(num_classes: int, in_channels: int, image_size: int | None) -> nn.Module:
    if image_size is None:
        raise ConfigError("model 'mlp' needs image_size, the height and width of the images")
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(in_channels * image_size**2, _MLP_WIDTH),
        nn.ReLU(),
        nn.Linear(_MLP_WIDTH, num_classes),
    )


def _torchvision_model(
    name: str, num_classes: int, in_channels: int, image_size: int | None
) -> nn.Module:
    from torchvision import models

    if in_channels != 3:
        raise ConfigError(
            f"torchvision's {name!r} takes 3 channels, the data has {in_channels}; "
            f"use one of {', '.join(_own_names())}"
        )
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        # Their auxiliary heads answer with a tuple; plain classification has one loss.
        options = {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_") and image_size is not None:
        options = {"image_size": image_size}
    try:
        model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **options)
    except (AssertionError, ValueError) as error:
        raise ConfigError(f"torchvision cannot build {name!r} with {options}: {error}") from error
    return model


def _own_names() -> tuple[str, ...]:
    return (
        *_CIFAR_RESNETS,
        "resnet50-cifar",
        *_COMMON_WIDE_RESNETS,
        *_SMALL_STAGED_NETWORKS,
        "vgg16-cifar",
        "densenet40-cifar",
        "mlp",
    )


def _torchvision_names() -> tuple[str, ...]:
    # torchvision takes a second to import, and most runs on small images never need it.
    from torchvision import models

    return tuple(models.list_models(module=models))
