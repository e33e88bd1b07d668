"""Jumpout as a function: checks its arguments, draws a seed, calls the compiled op."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from jumpout_export import ops

Normalize = Literal["batch", "sample", "none"]
Truncation = Literal["shift", "clip"]

_FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class JumpoutStatistics(NamedTuple):
    """What a call of jumpout sampled: float64 tensors on the input's device.

    Reading a value (`.item()`) waits for the device; holding the tensors does not.

    Attributes:
        q: fraction of entries > 0.
        p: rate drawn (or given), before normalisation.
        p_prime: rate used, after p / q, the cap and quantisation to multiples of 2^-16.
        scale: (1 - p_prime)^-alpha.
        capped: 1 where `rate_cap` bound, else 0.
    """

    q: Tensor
    p: Tensor
    p_prime: Tensor
    scale: Tensor
    capped: Tensor


def jumpout(
    x: Tensor,
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
    training: bool = True,
    seed: Tensor | None = None,
) -> Tensor:
    """Returns jumpout of `x`: dropout with a sampled rate, normalised by the fraction of active units.

    Wang, Zhou, Bilmes, "Jumpout: Improved Dropout for Deep Neural Networks with ReLUs", ICML 2019, Algorithm 1:
    q = mean(x > 0); p = min(p_min + |N(0, sigma)|, p_max); p' = p / q; each element is dropped with probability p',
    the others are multiplied by (1 - p')^-0.75. `jumpout_export.nn.reference.jumpout_reference` is the same in plain
    PyTorch, bit for bit in float32 and below.

    The result is a function of (x, seed, settings) alone: the same on any number of threads. A dense tensor is
    processed in its memory order, so the mask belongs to the position in memory (channels_last costs nothing); any
    other tensor is made contiguous first. The gradient is mask * scale; q counts as a constant.

    Args:
        x: (*) input; float32, float64, bfloat16 or float16.
        sigma: standard deviation of the sampled rate, >= 0. Default 0.1 unless `p` is given.
        p_min: smallest rate, in [0, 1).
        p_max: largest rate, in (p_min, 1].
        p: constant rate in [0, 1) instead of a sampled one.
        normalize: `batch`: p' = p / q with one q and one rate for the whole tensor; `sample`: one each per sample
            (first dimension); `none`: p' = p.
        alpha: exponent of the scale, >= 0; 1 keeps the mean like dropout, 0.75 is the paper's, 0 does not scale.
        rate_cap: p' never exceeds it, in (0, 1). It does not bind a constant rate with `normalize="none"`.
        truncation: `shift`: min(p_min + |N|, p_max); `clip`: |N| clamped into [p_min, p_max].
        relu: apply ReLU first, in the same pass: equals jumpout(relu(x)) with the same seed.
        inplace: write the result into `x`.
        training: False returns `x` itself (with `relu=True`: relu of it) and draws nothing.
        seed: () int64 tensor on x's device that makes the call a pure function; drawn from torch's generator if None.

    Shape:
        x: (*); output: the same.

    Raises:
        ValueError: if a setting is out of its range, or `p` and `sigma` are both given.
        TypeError: if x is not a floating tensor or the seed not an int64 scalar tensor.

    Example:
        >>> x = torch.randn(32, 64, 8, 8).relu()
        >>> y = jumpout(x, sigma=0.1)
    """
    settings = check_settings(sigma, p_min, p_max, p, normalize, alpha, rate_cap, truncation, relu)
    return jumpout_with_statistics(x, settings, inplace, training, seed)[0]


def jumpout_with_statistics(
    x: Tensor, settings: ops.Settings, inplace: bool = False, training: bool = True, seed: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Returns what `jumpout` returns, and what was sampled, for settings that `check_settings` returned.

    The second is a (rows, 5) float64 tensor with the columns of `JumpoutStatistics`, one row or one per sample; None
    in eval mode.
    """
    if not training:
        return (torch.relu_(x) if inplace else torch.relu(x)) if settings.relu else x, None
    _check_input(x, settings)
    if seed is None:
        # Inductor computes high - low in 64 bits, which the widest range overflows.
        low = 0 if torch.compiler.is_compiling() else -(2**63)
        seed = torch.randint(low, 2**63 - 1, (), dtype=torch.int64, device=x.device)
    else:
        _check_seed(seed, x)
    return ops.apply(x, seed, settings, inplace)


def check_settings(
    sigma: float | None,
    p_min: float,
    p_max: float,
    p: float | None,
    normalize: str,
    alpha: float,
    rate_cap: float,
    truncation: str,
    relu: bool,
) -> ops.Settings:
    """Returns the settings as the op takes them, or raises a ValueError that names the one out of range."""
    if p is not None and sigma is not None:
        raise ValueError(
            f"give either p (a constant rate) or sigma (a sampled rate), not both: got p={p} and sigma={sigma}"
        )
    if p is None and sigma is None:
        sigma = 0.1
    if sigma is not None:
        _require(0 <= sigma < math.inf, "sigma", "finite and >= 0", sigma)
    if p is not None:
        _require(0 <= p < 1, "p", "in [0, 1)", p)
    _require(0 <= p_min < 1, "p_min", "in [0, 1)", p_min)
    if not p_min < p_max <= 1:  # no message unless it is needed: torch.compile traces this with symbolic floats
        raise ValueError(f"p_max must be in (p_min, 1] with p_min={p_min}, got {p_max!r}")
    _require(0 < rate_cap < 1, "rate_cap", "in (0, 1)", rate_cap)
    _require(0 <= alpha < math.inf, "alpha", "finite and >= 0", alpha)
    _require(normalize in ("batch", "sample", "none"), "normalize", "'batch', 'sample' or 'none'", normalize)
    _require(truncation in ("shift", "clip"), "truncation", "'shift' or 'clip'", truncation)
    # A constant rate that nothing divides cannot reach 1, so plain dropout keeps its rate whatever the cap.
    cap = 1.0 if p is not None and normalize == "none" else float(rate_cap)
    rate = None if p is None else float(p)
    numbers = (rate, float(sigma or 0.0), float(p_min), float(p_max), float(alpha), cap)
    return ops.Settings(*numbers, normalize, truncation, bool(relu))


def _require(holds: bool, name: str, allowed: str, got: object) -> None:
    if not holds:
        raise ValueError(f"{name} must be {allowed}, got {got!r}")


def _check_input(x: Tensor, settings: ops.Settings) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    if x.dtype not in _FLOATING:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in _FLOATING)
        raise TypeError(f"x must be a floating tensor ({allowed}), got {x.dtype}")
    if not (x.is_cpu or x.is_cuda or x.is_meta):
        raise ValueError(f"x must be on a CPU or a CUDA device, got {x.device}")
    if x.is_cuda and not ops.HAS_CUDA:
        raise ValueError(
            f"x is on {x.device}, but this build of jumpout_export has no CUDA kernels; build it where nvcc is on the "
            "PATH: pip install . -C cmake.define.JUMPOUT_CUDA=ON"
        )
    if settings.normalize == "sample" and x.ndim == 0:
        raise ValueError("normalize='sample' needs a first dimension of samples, got a 0-d tensor")


def _check_seed(seed: Tensor, x: Tensor) -> None:
    if not isinstance(seed, Tensor) or seed.dtype != torch.int64:
        got = seed.dtype if isinstance(seed, Tensor) else type(seed).__name__
        raise TypeError(f"seed must be an int64 scalar tensor, got {got}; use torch.tensor(seed)")
    if seed.ndim != 0:
        raise ValueError(f"seed must be a scalar (0-d) tensor, got shape {tuple(seed.shape)}")
    if seed.device != x.device:
        raise ValueError(f"seed must be on x's device {x.device}, got {seed.device}")
