"""What the law of a scaled mask needs to know about the weights and the data between a mask and a BatchNorm."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Values that are held in float64 at a time: 32 MB.
CHUNK = 2**22
# A float32 constant c may vary by (c 2^-24)^2.
ROUNDING = 1e-13
_CONVOLUTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
}
LINEAR: tuple[type[nn.Module], ...] = (nn.Linear, *_CONVOLUTIONS)


@dataclass
class NoisePath:
    """How the noise of one stochastic layer reaches one BatchNorm, measured with the noise off.

    The BatchNorm's input is a bias plus u = sum_i w_i x_i; without a linear layer between, u = x. Sums are over samples
    and pixels, (C,) float64 on the CPU each.
    """

    path: str  # module path of the stochastic layer
    module: nn.Module  # the stochastic layer
    linear: nn.Module | None = None  # the linear layer between the two, or None
    channelwise: bool = False  # whole channels are dropped instead of elements
    # the fractions of active units that normalise the rate: one per call of the stochastic layer, with
    # `normalize="sample"` one per sample, 1 where nothing normalises it
    active: list[Tensor] = field(default_factory=list)
    count: int = 0  # values per channel
    power: Tensor | float = 0.0  # sum of what `mask_power` sums
    total: Tensor | float = 0.0  # sum of u
    square: Tensor | float = 0.0  # sum of u^2

    def add(self, x: Tensor, active: Tensor, power: Tensor | None = None, bias: Tensor | None = None) -> None:
        """Takes one call of the BatchNorm with input x, (N, C, *); power and bias, (C,), are the linear layer's."""
        count = x.numel() // x.shape[1]
        offset = torch.zeros(x.shape[1], dtype=torch.float64) if bias is None else bias.cpu()
        pixels = (0, *range(2, x.ndim))
        total, square = torch.zeros_like(offset), torch.zeros_like(offset)
        for chunk in _chunks(x):
            total += chunk.sum(dim=pixels).cpu()
            square += chunk.square_().sum(dim=pixels).cpu()
        square += (count * offset - 2 * total) * offset
        self.total = self.total + total - count * offset
        self.square = self.square + square
        self.power = self.power + (square if power is None else power)
        self.count += count
        self.active.append(active)

    @property
    def variance(self) -> Tensor:
        """(C,) Var(u), 0 where it is no more than what rounding makes of a constant."""
        square = torch.as_tensor(self.square / self.count)
        variance = square - torch.as_tensor(self.total / self.count).square()
        return torch.where(variance > ROUNDING * square, variance, 0.0)

    @property
    def rho(self) -> Tensor:
        """(C,) sum_i w_i^2 E[x_i^2] / Var(u); infinite or NaN where the channel is constant."""
        return self.power / self.count / self.variance

    @property
    def squared_mean(self) -> Tensor:
        """(C,) E[u]^2 / Var(u); infinite or NaN where the channel is constant."""
        return torch.as_tensor(self.total / self.count).square() / self.variance


def mask_power(linear: Any, x: Tensor, channels: int | None) -> Tensor | None:
    """Returns the sum over samples and output pixels of sum_i w_i^2 x_i^2, (C,) float64, or None where no law is known.

    i runs over the taps and input channels that one output pixel reads; what is padded with zeros has no noise. It is
    the convolution of x^2 with w^2, and because that is linear the samples are summed before it.

    Where whole channels of a map are dropped, `channels` is how many it has. One mask then covers all values of a
    channel, so that their weighted sum is squared instead of each.
    """
    if isinstance(linear, nn.Linear):
        if x.ndim != 2:
            return None  # its output channels are not the BatchNorm's
    elif linear.padding_mode != "zeros" or x.ndim != linear.weight.ndim:
        return None  # other paddings read one element, and its mask, several times
    if type(linear.weight) not in (Tensor, nn.Parameter):
        return None  # sharded or quantised
    weight: Tensor = linear.weight.detach().double()
    if channels is None:
        squares = torch.zeros(x.shape[1:], dtype=torch.float64, device=x.device)
        for chunk in _chunks(x):
            squares += chunk.square_().sum(dim=0)
        return _apply(linear, squares[None], weight.square())[0].flatten(1).sum(dim=1).cpu()
    if isinstance(linear, nn.Linear):
        return _channel_power_of_linear(x.unflatten(1, (channels, -1)), weight.unflatten(1, (channels, -1))).cpu()
    return _channel_power_of_convolution(linear, x, weight).cpu() if x.shape[1] == channels else None


def _apply(linear: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """The layer with another weight and without bias, (N, C, *)."""
    if isinstance(linear, nn.Linear):
        return F.linear(x, weight)[:, :, None]
    convolve = next(function for kind, function in _CONVOLUTIONS.items() if isinstance(linear, kind))
    return convolve(x, weight, None, linear.stride, linear.padding, linear.dilation, linear.groups)


def _channel_power_of_linear(x: Tensor, weight: Tensor) -> Tensor:
    """The sum over samples and channels of (sum of w x over the channel)^2, (O,), of (N, C, L) and (O, C, L)."""
    power = torch.zeros(len(weight), dtype=torch.float64, device=x.device)
    for chunk in _chunks(x):
        for channel in range(x.shape[1]):
            power += (chunk[:, channel] @ weight[:, channel].mT).square_().sum(dim=0)
    return power


def _channel_power_of_convolution(convolution: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """The same over output pixels, too: w^T G w, with G the sum of x x^T over a channel's patches of T taps."""
    taps = weight[0, 0].numel()
    gram = torch.zeros(x.shape[1], taps, taps, dtype=torch.float64, device=x.device)
    for chunk in _chunks(x, copies=taps):
        patches = torch.stack(list(_taps(convolution, chunk)))  # (T, N, C, *)
        patches = patches.flatten(3).permute(2, 0, 1, 3).flatten(2)
        gram += patches @ patches.mT
    filters = weight.flatten(2).unflatten(0, (convolution.groups, -1))
    products = torch.einsum("goit,gitu->goiu", filters, gram.unflatten(0, (convolution.groups, -1)))
    return (products * filters).sum(dim=(2, 3)).flatten()


def _taps(convolution: Any, x: Tensor) -> Iterator[Tensor]:
    """For each tap of the kernel what it reads at every output pixel, (N, C, *)."""
    kernel, strides, dilation = convolution.kernel_size, convolution.stride, convolution.dilation
    reach = [(size - 1) * step for size, step in zip(kernel, dilation, strict=True)]
    padding = {"valid": [0] * len(reach), "same": [length // 2 for length in reach]}
    before = padding.get(convolution.padding, convolution.padding)
    after = [length - length // 2 for length in reach] if convolution.padding == "same" else before
    # F.pad wants the last dimension first.
    padded = F.pad(x, [amount for pair in zip(reversed(before), reversed(after), strict=True) for amount in pair])
    last = [size - length for size, length in zip(padded.shape[2:], reach, strict=True)]
    for taps in itertools.product(*map(range, kernel)):
        starts = [tap * step for tap, step in zip(taps, dilation, strict=True)]
        pixels = [slice(start, start + end, stride) for start, end, stride in zip(starts, last, strides, strict=True)]
        yield padded[(slice(None), slice(None), *pixels)]


def _chunks(x: Tensor, copies: int = 1) -> Iterator[Tensor]:
    """Samples of x in float64, new memory, as many at a time as hold `CHUNK` values in all copies, at least one."""
    for chunk in x.detach().split(max(1, CHUNK * len(x) // max(copies * x.numel(), 1))):
        yield chunk.to(torch.float64, copy=True)
