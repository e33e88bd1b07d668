"""Jumpout as a layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from jumpout_export.nn.functional import (
    JumpoutStatistics,
    Normalize,
    Truncation,
    check_settings,
    jumpout_with_statistics,
)


class Jumpout(nn.Module):
    """Jumpout layer (Wang, Zhou, Bilmes, ICML 2019); place it after a ReLU, or let it replace one with `relu=True`.

    In train mode one call is Algorithm 1 on one mini-batch; `jumpout` documents it and every argument. In eval mode
    `forward` returns its input object itself (with `relu=True`: relu of it). The layer has no parameters and no
    buffers: a checkpoint trained with it loads into the same network without the layer or with nn.Dropout.

    Args:
        sigma: standard deviation of the sampled rate, >= 0. Default 0.1 unless `p` is given.
        p_min: smallest rate, in [0, 1).
        p_max: largest rate, in (p_min, 1].
        p: constant rate in [0, 1) instead of a sampled one.
        normalize: `batch`, `sample` or `none`.
        alpha: exponent of the scale, >= 0.
        rate_cap: largest rate after normalisation, in (0, 1).
        truncation: `shift` or `clip`.
        relu: apply ReLU first, in the same pass.
        inplace: write the result into the input.

    Shape:
        Input: (*); output: the same.

    Raises:
        ValueError: if a setting is out of its range, or `p` and `sigma` are both given.

    Example:
        >>> layer = Jumpout(sigma=0.1, relu=True)
        >>> y = layer(torch.randn(32, 64, 8, 8))
        >>> rate = layer.statistics.p_prime
    """

    def __init__(
        self,
        sigma: float | None = None,
        p_min: float = 0.01,
        p_max: float = 0.6,
        *,
        p: float | None = None,
        normalize: Normalize = "batch",
        alpha: float = 0.75,
        rate_cap: float = 0.95,
        truncation: Truncation = "shift",
        relu: bool = False,
        inplace: bool = False,
    ) -> None:
        super().__init__()
        check_settings(sigma, p_min, p_max, p, normalize, alpha, rate_cap, truncation, relu)
        self.sigma = 0.1 if sigma is None and p is None else sigma
        self.p_min = p_min
        self.p_max = p_max
        self.p = p
        self.normalize = normalize
        self.alpha = alpha
        self.rate_cap = rate_cap
        self.truncation = truncation
        self.relu = relu
        self.inplace = inplace
        # Neither a parameter nor a buffer: it is no state of the network, and DDP must not broadcast it.
        self._sampled = torch.full((1, len(JumpoutStatistics._fields)), math.nan, dtype=torch.float64)

    @property
    def statistics(self) -> JumpoutStatistics:
        """What the last call in train mode sampled: () tensors, means over the samples with `normalize="sample"`.

        NaN before the first call. Nothing waits for the device.
        """
        return JumpoutStatistics(*self._sampled.clone()[0].unbind())

    def forward(self, x: Tensor) -> Tensor:
        """Returns jumpout of x in train mode, x itself in eval mode."""
        # Checked at each call, so that a schedule may set the attributes between calls.
        settings = check_settings(
            self.sigma,
            self.p_min,
            self.p_max,
            self.p,
            self.normalize,
            self.alpha,
            self.rate_cap,
            self.truncation,
            self.relu,
        )
        y, sampled = jumpout_with_statistics(x, settings, self.inplace, self.training)
        if sampled is not None:
            self._record(sampled if self.normalize != "sample" else sampled.mean(0, keepdim=True))
        return y

    def _record(self, sampled: Tensor) -> None:
        # torch.compile allows no assignment to an attribute inside activation checkpointing, but an in-place update.
        if torch.compiler.is_compiling() and self._sampled.device == sampled.device:
            self._sampled.copy_(sampled)
        else:
            self._sampled = sampled.clone()  # autograd holds `sampled`, and a compiled call may write here

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._sampled = self._sampled.to(fn(self._sampled).device)  # follows .to(device), not .half()
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        """Returns the settings that differ from the paper's Algorithm 1, and the rate."""
        rate = f"sigma={self.sigma}, p_min={self.p_min}, p_max={self.p_max}" if self.p is None else f"p={self.p}"
        defaults = {
            "normalize": "batch",
            "alpha": 0.75,
            "rate_cap": 0.95,
            "truncation": "shift",
            "relu": False,
            "inplace": False,
        }
        changed = [
            f"{name}={getattr(self, name)!r}" for name, value in defaults.items() if getattr(self, name) != value
        ]
        return ", ".join([rate, *changed])
