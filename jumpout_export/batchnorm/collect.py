"""Collects, in one pass and in memory independent of the number of images, the moments of what each BatchNorm sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jumpout_export.batchnorm.feed import Feed, Step
from jumpout_export.batchnorm.layers import Layer
from jumpout_export.batchnorm.states import State, in_state

# Image i belongs to fold i % FOLDS: interleaved, so that no split into batches changes the folds.
FOLDS = 32
# Rows of the sums: images, then the sums of a, b, a^2, b^2 and a b over images.
N, A, B, AA, BB, AB = range(6)


class Moments:
    """The additive moments of one layer's input.

    The unit is an image, because the pixels of one image are correlated: a and b are the means over an image's pixels
    of x and x^2, with x shifted by the stored mean and divided by the stored tau = sqrt(running_var + eps) (by 0 and 1
    in channels whose statistics are unusable). The shift removes the cancellation in b - a^2.

    Attributes:
        shift: (C,) float64, what was subtracted.
        scale: (C,) float64, what it was divided by.
        sums: (FOLDS, 6, C) float64: rows n, Sa, Sb, Saa, Sbb, Sab per fold of images. Sums of several collections on
            the same shift and scale add.
        count: values per channel: images times pixels.
        images: images that reached the layer.
        calls: calls of the layer in one forward, the most seen.
    """

    def __init__(self, layer: Layer) -> None:
        self.shift, self.scale = _units(layer)
        channels = self.shift.shape[0]
        self.sums = torch.zeros(FOLDS, 6, channels, dtype=torch.float64, device=self.shift.device)
        self.count = self.images = self.calls = 0
        self._pending: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """Takes the input of one call, (N, C, *)."""
        self.count += x.numel() // x.shape[1]
        x = x.detach() if x.dtype in (torch.float32, torch.float64) else x.detach().float()
        pixels = tuple(range(2, x.ndim))
        mean, square = x.double(), torch.zeros((), dtype=torch.float64, device=x.device)
        if pixels:
            # Centred per image before squaring: float32 is then enough for the sum over pixels.
            mean_of_image = x.mean(dim=pixels, keepdim=True)
            square = (x - mean_of_image).square_().mean(dim=pixels).double()
            mean = mean_of_image.flatten(1).double()
        a = (mean.to(self.shift.device) - self.shift) / self.scale
        b = square.to(self.shift.device) / self.scale.square() + a.square()
        self._pending.append(torch.stack([a, b]))

    def end_forward(self) -> int:
        """Pools the calls of one forward into its images and returns how many images they were."""
        pending, self._pending = self._pending, []
        self.calls = max(self.calls, len(pending))
        if len({call.shape for call in pending}) == 1:
            # The same images several times are no more images: their calls are averaged, each weighing the same.
            pending = [torch.stack(pending).mean(dim=0)]
        before = self.images
        for a, b in pending:
            rows = torch.stack([torch.ones_like(a), a, b, a * a, b * b, a * b], dim=1)
            fold = torch.arange(self.images, self.images + a.shape[0], device=a.device) % FOLDS
            self.sums.index_add_(0, fold, rows)
            self.images += a.shape[0]
        return self.images - before

    @property
    def total(self) -> Tensor:
        """(6, C) the sums over all images."""
        return self.sums.sum(dim=0)

    @property
    def finite(self) -> bool:
        """Whether the input held neither NaN nor infinity."""
        return bool(torch.isfinite(self.sums).all())

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        """Returns mean and unbiased variance v n / (n - 1) of the input, (C,) float64 each, n = images x pixels.

        Raises:
            ValueError: if there is one value per channel only.
        """
        if self.count < 2:
            raise ValueError("the variance of a single value per channel is undefined; pass more images")
        n, a, b = self.total[[N, A, B]]
        m = a / n
        v = (b / n - m.square()).clamp_min(0) * (self.count / (self.count - 1))
        return self.shift + self.scale * m, self.scale.square() * v


@dataclass(frozen=True)
class Collected:
    """What one pass saw.

    Attributes:
        moments: by layer name, in call order; a layer that the forward did not reach is missing.
        images: images the model saw.
        batches: batches they came in.
    """

    moments: dict[str, Moments]
    images: int
    batches: int


def collect(feed: Feed, layers: Sequence[Layer], state: State, what: str) -> Collected:
    """Returns the moments of the inputs of `layers` over one pass in `state`.

    The model is left exactly as it was found: flags, buffers, hooks, generator states, also after an exception.

    Raises:
        ValueError: if a layer must normalise by batch statistics and its batch holds one value per channel.
    """
    moments: dict[str, Moments] = {}
    handles = []

    def visit(step: Step) -> int:
        step.run()
        rows = [layer_moments.end_forward() for layer_moments in moments.values()]
        return rows[0] if rows else 0

    try:
        for layer in layers:
            hook = _hook(layer, moments, state)
            handles.append(layer.module.register_forward_pre_hook(hook, with_kwargs=True))
        with torch.no_grad(), in_state(feed.model, layers, state):
            seen = feed.replay(what, visit)
    finally:
        for handle in handles:
            handle.remove()
    return Collected(moments, seen.images, seen.batches)


def _hook(layer: Layer, moments: dict[str, Moments], state: State) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["input"]
        if x.ndim < 2 or x.shape[1] != layer.module.num_features:
            return  # the layer's own error says what is wrong
        if module.training and x.numel() == x.shape[1]:
            raise ValueError(
                f"BatchNorm {layer.label} got a batch with one value per channel, which has no variance to normalise "
                f"by in the {state.name} state; pass larger batches, or use method='exact'"
            )
        if layer.name not in moments:
            moments[layer.name] = Moments(layer)
        moments[layer.name].add(x)

    return hook


def _units(layer: Layer) -> tuple[Tensor, Tensor]:
    if not layer.tracked:
        zeros = torch.zeros(layer.module.num_features, dtype=torch.float64, device=_device(layer.module))
        return zeros, torch.ones_like(zeros)
    mean, var = layer.statistics()
    unusable = layer.unusable_channels()
    shift = torch.where(unusable, 0.0, mean.double())
    scale = torch.where(unusable, 1.0, var.double() + layer.module.eps).sqrt()
    return shift, scale


def _device(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
