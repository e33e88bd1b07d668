"""Shifted and mirrored copies of training images, a whole batch at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Returns each image shifted by up to an eighth of its size in both directions, half of them mirrored.

    Pixels that come from beyond the border are 0. Every image draws for itself, from torch's generator of the CPU.

    Args:
        x: (N, C, H, W), on any device.
        generator: of the CPU; torch's own by default.
    """
    count, _, height, width = x.shape
    rows, columns = height // 8, width // 8
    down = torch.randint(2 * rows + 1, (count, 1), generator=generator).to(x.device)
    right = torch.randint(2 * columns + 1, (count, 1), generator=generator).to(x.device)
    mirrored = (torch.rand(count, generator=generator) < 0.5).to(x.device)
    padded = F.pad(x, (columns, columns, rows, rows))
    at_row = down + torch.arange(height, device=x.device)
    at_column = right + torch.arange(width, device=x.device)
    at_column = torch.where(mirrored[:, None], at_column.flip(1), at_column)
    images = torch.arange(count, device=x.device)[:, None, None]
    # Indexed axes that are not neighbours come first: (N, H, W, C).
    return padded[images, :, at_row[:, :, None], at_column[:, None, :]].permute(0, 3, 1, 2).contiguous()
