"""Fuse what several views say of a node into one code by nested autoencoders.

Source: auto multi-view fusion of MV-HetGNN (arXiv 2108.13650), reconstructed from its authors' code.

| paper | here |
| --- | --- |
| Z_m | `views[m]`, the encoding by view m |
| A_m, B_m | `inner_encoders[m]`, `inner_decoders[m]` |
| V, V' | `outer_encoder`, `outer_decoder` |
| U | `codes`, all inner codes side by side |
| H | `fused` |
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["AutoFusion", "off_diagonal_mass"]


class AutoFusion(nn.Module):
    """Encode each view by itself, and all codes together into the node's embedding.

    Args:
        views: number of views, M.
        width: d, of encodings and codes alike.
        gain: factor of the orthogonal initialisation.
    """

    def __init__(self, views: int, width: int, gain: float = 1.0) -> None:
        super().__init__()
        self.inner_encoders = nn.Parameter(torch.empty(views, width, width))
        self.inner_decoders = nn.Parameter(torch.empty(views, width, width))
        self.outer_encoder = nn.Parameter(torch.empty(views * width, width))
        self.outer_decoder = nn.Parameter(torch.empty(width, views * width))
        for matrix in (
            *self.inner_encoders.data,
            *self.inner_decoders.data,
            self.outer_encoder.data,
            self.outer_decoder.data,
        ):
            nn.init.orthogonal_(matrix, gain)

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embedding `(n, d)` of encodings `(M, n, d)`, and the reconstruction loss, a scalar.

        The loss is half the mean squared error of the inner decoders plus half that of the outer one.
        """
        codes = F.elu(torch.bmm(views, self.inner_encoders))
        side_by_side = codes.transpose(0, 1).reshape(views.shape[1], -1)
        fused = side_by_side @ self.outer_encoder
        decoded = F.relu(torch.bmm(codes, self.inner_decoders))
        inner = F.mse_loss(decoded, views)
        outer = F.mse_loss(fused @ self.outer_decoder, side_by_side)
        return fused, 0.5 * (inner + outer)

    def orthogonality(self) -> Tensor:
        """Return how far the encoders' columns are from orthogonal: a scalar, 0 when they are."""
        return off_diagonal_mass(self.inner_encoders) + off_diagonal_mass(self.outer_encoder)


def off_diagonal_mass(matrices: Tensor) -> Tensor:
    """Return the sum of |(W^T W)_ij| over i != j, and over all matrices W `(..., rows, columns)`.

    In float32 also under autocast: rounding to bfloat16 would alone make entries of 0.01.
    """
    with torch.autocast(matrices.device.type, enabled=False):
        products = matrices.float().transpose(-2, -1) @ matrices.float()
        diagonal = torch.eye(products.shape[-1], dtype=torch.bool, device=products.device)
        return products.masked_fill(diagonal, 0).abs().sum()
