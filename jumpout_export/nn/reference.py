"""What the compiled op computes, in plain PyTorch: Algorithm 1 line by line, with the same random numbers.

Slow and readable: the oracle of the tests. Equal to `jumpout` bit for bit in float32 and below; in float64 the scale
may differ by a rounding error. The quantile comes from `torch.special.ndtri` and agrees to 1e-12, far below the 2^-16
steps of p'.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jumpout_export.nn.functional import JumpoutStatistics, check_settings
from jumpout_export.ops import PHILOX_ROUNDS

_MASK32 = 0xFFFFFFFF


def jumpout_reference(
    x: Tensor,
    seed: Tensor,
    sigma: float | None = None,
    p_min: float = 0.01,
    p_max: float = 0.6,
    *,
    p: float | None = None,
    normalize: str = "batch",
    alpha: float = 0.75,
    rate_cap: float = 0.95,
    truncation: str = "shift",
    relu: bool = False,
) -> tuple[Tensor, JumpoutStatistics]:
    """Returns what `jumpout(x, ..., seed=seed)` returns, and the statistics; differentiable by plain autograd.

    Args:
        x: (*) contiguous floating tensor; of another the op takes the memory order, which this does not.
        seed: () int64 tensor.
        sigma: as in `jumpout`, like all other arguments.
        p_min: smallest rate.
        p_max: largest rate.
        p: constant rate.
        normalize: `batch`, `sample` or `none`.
        alpha: exponent of the scale.
        rate_cap: largest p'.
        truncation: `shift` or `clip`.
        relu: apply ReLU first.

    Raises:
        ValueError: if x is not contiguous or a setting out of range.
    """
    if not x.is_contiguous():
        raise ValueError(f"x must be contiguous, got strides {x.stride()} for shape {tuple(x.shape)}")
    rate, sigma_, p_min, p_max, alpha, cap, *_ = check_settings(
        sigma, p_min, p_max, p, normalize, alpha, rate_cap, truncation, relu
    )
    if relu:
        x = torch.relu(x)
    samples = x.shape[0] if normalize == "sample" else 1
    rows = x.reshape(samples, x.numel() // max(samples, 1))

    q = (rows > 0).double().mean(1).nan_to_num()  # line 1; an empty row has no active unit
    if rate is None:  # line 2
        noise = sigma_ * _half_normal(seed, rows.shape[0])
        drawn = noise.clamp(p_min, p_max) if truncation == "clip" else (p_min + noise).clamp(max=p_max)
    else:
        drawn = torch.full_like(q, rate)
    p_prime = drawn if normalize == "none" else torch.where(q > 0, drawn / q, 0.0)  # line 3
    capped = p_prime > cap
    steps = (p_prime.clamp(max=cap) * 65536 + 0.5).floor().clamp(max=65535)

    keep = _random16(seed, x.numel()).reshape(rows.shape) >= steps[:, None]  # line 4
    p_prime = steps / 65536
    scale = (1 - p_prime) ** -alpha  # line 5
    compute = rows if rows.dtype == torch.float64 else rows.float()
    y = torch.where(keep, compute * scale.to(compute.dtype)[:, None], 0.0).to(x.dtype)  # line 6
    return y.reshape(x.shape), JumpoutStatistics(q, drawn, p_prime, scale, capped.double())


def philox_reference(counter: Tensor, key: tuple[int, int], rounds: int = PHILOX_ROUNDS) -> Tensor:
    """Returns Philox-4x32 of `counter`, (n, 4) int64 words below 2^32 (Salmon et al., SC 2011); the same shape."""
    c0, c1, c2, c3 = counter.unbind(1)
    k0, k1 = key
    for _ in range(rounds):
        high0, low0 = _multiply(0xD2511F53, c0)
        high1, low1 = _multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & _MASK32, (k1 + 0xBB67AE85) & _MASK32
    return torch.stack([c0, c1, c2, c3], 1)


def _multiply(constant: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a 32 x 32 bit product; the halves of the constant keep int64 from overflowing."""
    low_product = (constant & 0xFFFF) * word
    middle = (constant >> 16) * word + (low_product >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low_product & 0xFFFF)


def _philox_stream(seed: Tensor, indices: Tensor, stream: int) -> Tensor:
    key = int(seed) & 0xFFFFFFFFFFFFFFFF
    zero = torch.zeros_like(indices)
    counter = torch.stack([indices & _MASK32, indices >> 32, zero, zero + stream], 1)
    return philox_reference(counter, (key & _MASK32, key >> 32))


def _random16(seed: Tensor, n: int) -> Tensor:
    """16 random bits for each of n positions: eight decisions from each 128-bit block, low half words first."""
    words = _philox_stream(seed, torch.arange((n + 7) // 8), 0)
    return torch.stack([words & 0xFFFF, words >> 16], 2).reshape(-1)[:n]


def _half_normal(seed: Tensor, rows: int) -> Tensor:
    """|N(0, 1)| per row, from the reserved stream: the quantile of a 52-bit uniform number."""
    words = _philox_stream(seed, torch.arange(rows), 1)
    uniform = ((words[:, 1] << 20 | words[:, 0] >> 12).double() + 0.5) * 2.0**-52
    # |N| at u is minus the quantile at (1 - u) / 2, the side on which small tails are exact.
    return -torch.special.ndtri((1 - uniform) / 2) if rows else uniform
