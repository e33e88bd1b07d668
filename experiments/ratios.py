"""How noise changes mean and variance of what the next layer's BatchNorm sees: Figs 3 and 5, beside the closed form.

With y = sum_i w_i x_i without noise, and each x_i dropped with probability p' = 1 - k and scaled by k^-alpha,

    E[y with noise] / E[y]      = k^(1 - alpha)
    Var[y with noise] / Var[y]  = k^(2 - 2 alpha) (1 + rho (1 - k) / k),   rho = sum_i w_i^2 E[x_i^2] / Var[y]

hold exactly where the noise is that layer's input and there is none before; rho = 0 and rho = 1 bound the variance
for the rho in between. In a network with noise everywhere that is so at the first noisy layer only, so each layer's
own noise is measured alone too. Behind a max pooling the closed form does not hold: the maximum of several noisy
values is not a noisy maximum.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from experiments.results import Ratio, digits
from experiments.watch import noise_layers, rate
from jumpout_export import Jumpout

Mode = Literal["batch", "stored", "alone"]


@dataclass(frozen=True)
class _Moments:
    """Per channel of each layer's output, without its bias; and rho where there is no noise."""

    mean: dict[str, Tensor]
    variance: dict[str, Tensor]
    rho: dict[str, Tensor]


def measure_ratios(network: nn.Module, x: Tensor, *, alone: bool = False, draws: int = 8) -> list[Ratio]:
    """Returns a row per layer behind noise and mode; the network is left as it was.

    Args:
        network: on the device of `x`.
        x: a batch of images.
        alone: also measure each layer with the noise at its own input only.
        draws: how often the noise is drawn, at least 2.
    """
    behind = _layers_behind_noise(network, x)
    noise = list(behind.values())
    rows = []
    for mode in ("batch", "stored"):
        rows += _rows(network, x, mode, behind, noise, draws)
    for name, source in behind.items() if alone else ():
        rows += _rows(network, x, "alone", {name: source}, [source], draws)
    return rows


def _rows(
    network: nn.Module, x: Tensor, mode: Mode, behind: dict[str, str], noisy_layers: list[str], draws: int
) -> Iterator[Ratio]:
    """The rows of some layers while some noise layers are on."""
    with _mode(network, mode, []):
        plain = _moments(network, x, behind)
    noisy, keeps = [], []
    with _mode(network, mode, noisy_layers):
        for _ in range(draws):
            noisy.append(_moments(network, x, behind))
            keeps.append({name: 1 - rate(network.get_submodule(name)) for name in noisy_layers})
    for name, source in behind.items():
        layer = network.get_submodule(source)
        alpha = layer.alpha if isinstance(layer, Jumpout) else 1.0
        yield _row(name, mode, alpha, [values[source] for values in keeps], plain, noisy)


def _row(name: str, mode: Mode, alpha: float, keeps: list[float], plain: _Moments, noisy: list[_Moments]) -> Ratio:
    m, v, rho = plain.mean[name], plain.variance[name], plain.rho[name]
    used = v > 0  # a dead channel has no ratio
    means = [float((one.mean[name] * m).sum() / (m * m).sum()) for one in noisy]
    variances = [float((one.variance[name][used] / v[used]).mean()) for one in noisy]
    average = float(rho[used].mean())
    expected = [(k ** (1 - alpha), k ** (2 - 2 * alpha) * (1 + average * (1 - k) / k)) for k in keeps]
    mean_offs = [value - one for value, (one, _) in zip(means, expected, strict=True)]
    variance_offs = [value - two for value, (_, two) in zip(variances, expected, strict=True)]
    numbers = {
        "keep": _mean(keeps),
        "mean": _mean(means),
        "mean_error": _standard_error(mean_offs),
        "variance": _mean(variances),
        "variance_error": _standard_error(variance_offs),
        "rho": average,
        "mean_expected": _mean([one for one, _ in expected]),
        "variance_expected": _mean([two for _, two in expected]),
    }
    # As precise as a standard error of 1e-4 needs it.
    return Ratio(layer=name, mode=mode, **{key: digits(value, 6) for key, value in numbers.items()})


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _standard_error(values: list[float]) -> float:
    mean = _mean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def _layers_behind_noise(network: nn.Module, x: Tensor) -> dict[str, str]:
    """The convolution or linear layer that is called next after each noise layer -> that noise layer."""
    noise = noise_layers(network)
    found: dict[str, str] = {}
    last: list[str] = []

    def note(name: str) -> None:
        if name in noise:
            last.append(name)
        elif last:
            found[name] = last.pop()

    watched = [(name, module) for name, module in network.named_modules() if name in noise or _is_linear(module)]
    handles = [module.register_forward_hook(lambda *_, name=name: note(name)) for name, module in watched]
    try:
        with _mode(network, "stored", []), torch.no_grad():
            network(x[:2])
    finally:
        for handle in handles:
            handle.remove()
    return found


def _moments(network: nn.Module, x: Tensor, layers: dict[str, str]) -> _Moments:
    found = _Moments({}, {}, {})

    def note(name: str, layer: nn.Conv2d | nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        y = output.double()
        if layer.bias is not None:
            y = y - layer.bias.double().reshape(-1, *[1] * (y.ndim - 2))
        axes = [axis for axis in range(y.ndim) if axis != 1]
        found.mean[name], found.variance[name] = y.mean(axes), y.var(axes, correction=0)
        square = inputs[0].square().mean(0, keepdim=True)
        if isinstance(layer, nn.Linear):
            noise = F.linear(square, layer.weight.square())[0]
        else:
            noise = F.conv2d(square, layer.weight.square(), None, layer.stride, layer.padding).mean((0, 2, 3))
        found.rho[name] = noise.double() / found.variance[name]

    handles = []
    for name in layers:
        layer = network.get_submodule(name)
        hook = lambda module, inputs, output, name=name: note(name, module, inputs, output)  # noqa: E731
        handles.append(layer.register_forward_hook(hook))
    try:
        with torch.no_grad():
            network(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.Linear)


@contextlib.contextmanager
def _mode(network: nn.Module, mode: Mode, noisy_layers: list[str]) -> Iterator[None]:
    """BatchNorm in the mode asked for, some noise layers on; flags and buffers as before afterwards."""
    modules = list(network.modules())
    flags = [module.training for module in modules]
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        network.eval()
        for module in modules:
            if isinstance(module, _BatchNorm):
                module.train(mode == "batch")
        for name in noisy_layers:
            network.get_submodule(name).train()
        yield
    finally:
        for module, flag in zip(modules, flags, strict=True):
            module.training = flag
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
