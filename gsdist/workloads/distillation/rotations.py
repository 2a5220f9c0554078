"""Turn images into their four rotations and classes into joint labels of class and rotation.

Source: Yang et al., Hierarchical Self-supervised Augmented Knowledge Distillation, 2021, section 3.1.
"""

import torch
from torch import Tensor

__all__ = ["ROTATIONS", "joint_labels", "rotated_views"]

ROTATIONS = 4
"""By 0, 90, 180 and 270 degrees, counter-clockwise."""


def rotated_views(images: Tensor) -> Tensor:
    """Return the rotations of square images `(N, C, H, H)` as `(4N, C, H, H)`.

    The four of one image follow each other; rows 0, 4, 8, ... are the images themselves.
    """
    views = [images.rot90(quarter, dims=(2, 3)) for quarter in range(ROTATIONS)]
    return torch.stack(views, dim=1).flatten(0, 1)


def joint_labels(labels: Tensor) -> Tensor:
    """Return the joint labels of the views of images with class `labels` `(N,)`, int64 `(4N,)`.

    Class y at rotation r has joint label 4y + r.
    """
    rotations = torch.arange(ROTATIONS, device=labels.device)
    return (labels[:, None] * ROTATIONS + rotations).flatten()
