"""Weight initialisation that accounts for dropout and the nonlinearity.

Hendrycks and Gimpel, "Adjusting for Dropout Variance in Batch Normalization and Weight Initialization", 2016.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from jumpout_export.nn.functional import check_settings

Nonlinearity = Literal["identity", "relu", "gelu", "tanh", "elu"]

# E[f(z)^2] and E[f'(z)^2] for z ~ N(0, 1), by quadrature; the tests integrate them again.
MOMENTS: dict[str, tuple[float, float]] = {
    "identity": (1.0, 1.0),
    "relu": (0.5, 0.5),
    "gelu": (0.42522, 0.45585),
    "tanh": (0.39429, 0.46440),
    "elu": (0.64494, 0.66810),
}


def second_moment(
    sigma: float | None = None,
    p_min: float = 0.01,
    p_max: float = 0.6,
    *,
    p: float | None = None,
    alpha: float = 0.75,
    active_fraction: float = 0.5,
    rate_cap: float = 0.95,
) -> float:
    """Returns E[k^(1 - 2 alpha)], k = 1 - p': the second moment of jumpout's scaled mask (1/keep rate for dropout).

    Args:
        sigma: standard deviation of the sampled rate, as in `Jumpout`.
        p_min: smallest rate.
        p_max: largest rate.
        p: constant rate instead.
        alpha: exponent of the scale.
        active_fraction: q, the fraction of active units that normalises the rate, in (0, 1]; 0.5 after a ReLU of a
            centred input, 1 for `normalize="none"`.
        rate_cap: largest p'.

    Raises:
        ValueError: if a setting is out of range.
    """
    rate, sigma_, p_min, p_max, alpha, cap, *_ = check_settings(
        sigma, p_min, p_max, p, "batch", alpha, rate_cap, "shift", False
    )
    if not 0 < active_fraction <= 1:
        raise ValueError(f"active_fraction must be in (0, 1], got {active_fraction}")
    if rate is not None:
        rates = torch.tensor([rate], dtype=torch.float64)
    else:  # the quantile at the midpoints of 4096 equal slices of probability: error below 1e-6
        u = (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096
        rates = (p_min - sigma_ * torch.special.ndtri((1 - u) / 2)).clamp(max=p_max)
    keep = 1 - (rates / active_fraction).clamp(max=cap)
    return float((keep ** (1 - 2 * alpha)).mean())


def hendrycks_gimpel_(
    module: nn.Module, nonlinearity: Nonlinearity = "relu", mask_second_moment: float = 1.0, orthogonal: bool = False
) -> nn.Module:
    """Initialises the weights of each linear and convolutional layer of `module` in place, and returns `module`.

    Rows of unit norm (or orthonormal ones), divided by sqrt(E[f(z)^2] M + E[f'(z)^2] / M), where M is the second moment
    of the dropout mask on the layer's input: 1 / keep rate for dropout, `second_moment(...)` for jumpout, 1 without.
    Convolutions take the forward term E[f(z)^2] M alone. Biases are set to zero.

    Args:
        module: a layer or a network; modified in place.
        nonlinearity: f, applied to the layer's input.
        mask_second_moment: M, >= 1.
        orthogonal: orthonormal rows instead of independent ones of unit norm.

    Raises:
        ValueError: if the nonlinearity is unknown or M below 1.
    """
    if nonlinearity not in MOMENTS:
        raise ValueError(f"nonlinearity must be one of {', '.join(MOMENTS)}, got {nonlinearity!r}")
    if not (math.isfinite(mask_second_moment) and mask_second_moment >= 1):
        raise ValueError(f"mask_second_moment must be finite and >= 1, got {mask_second_moment}")
    forward, backward = MOMENTS[nonlinearity]
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            _fill(layer, forward * mask_second_moment + backward / mask_second_moment, orthogonal)
        elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            _fill(layer, forward * mask_second_moment, orthogonal)
    return module


@torch.no_grad()
def _fill(layer: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d, variance: float, orthogonal: bool) -> None:
    weight: Tensor = layer.weight
    if orthogonal:
        nn.init.orthogonal_(weight)
    else:
        nn.init.normal_(weight)
    rows = weight.flatten(1)
    weight.div_((rows.norm(dim=1) * math.sqrt(variance)).reshape(-1, *[1] * (weight.ndim - 1)))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
