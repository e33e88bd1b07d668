"""Finds a model's BatchNorm layers and says what can be known about them without running the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy


@dataclass(frozen=True)
class Layer:
    """One BatchNorm layer.

    Attributes:
        name: module path; a module used under several paths has the first of them. Empty if it is the model itself.
        module: the layer.
        frozen: training would not touch its statistics: it is in eval mode while the model trains, or in eval mode
            with affine parameters that need no gradient.
    """

    name: str
    module: _BatchNorm
    frozen: bool

    @property
    def label(self) -> str:
        """The name as messages print it."""
        return label(self.name)

    @property
    def tracked(self) -> bool:
        """Whether the layer stores running statistics."""
        return self.module.running_mean is not None and self.module.running_var is not None

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Returns the stored mean and variance, the buffers themselves, (C,) each.

        Raises:
            ValueError: if the layer stores none.
        """
        mean, var = self.module.running_mean, self.module.running_var
        if mean is None or var is None:
            raise ValueError(
                f"BatchNorm {self.label} has no running statistics; pass `track_running_stats=True` and train it again"
            )
        return mean, var

    def unusable_channels(self) -> Tensor:
        """Returns (C,) bool: channels whose stored statistics are not finite or give no positive variance."""
        mean, var = self.statistics()
        var = var.double() + self.module.eps
        return ~torch.isfinite(mean) | ~torch.isfinite(var) | (var <= 0)


def label(name: str) -> str:
    """Returns a layer's name as messages print it."""
    return f"`{name}`" if name else "the model itself"


def batchnorm_layers(model: nn.Module) -> list[Layer]:
    """Returns the BatchNorm layers (1d, 2d, 3d, Sync, and subclasses) of `model` in registration order.

    Raises:
        ValueError: if there is none, or one is lazy and was not initialised yet.
    """
    layers = [
        Layer(name, module, _is_frozen(module, model))
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
    ]
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no BatchNorm layer, so there is nothing to check or recalibrate; "
            "pass a model with BatchNorm1d, BatchNorm2d, BatchNorm3d or SyncBatchNorm"
        )
    for layer in layers:
        if layer.tracked and is_lazy(layer.statistics()[0]):
            raise ValueError(f"BatchNorm {layer.label} is not initialised yet; run one forward pass of the model first")
    return layers


def select_layers(layers: Sequence[Layer], names: Iterable[str] | None) -> list[Layer]:
    """Returns the layers that may be recalibrated: those named, or by default all that are not frozen.

    Raises:
        ValueError: if a name is unknown, a named layer stores no statistics, or nothing is left.
    """
    if names is None:
        chosen = [layer for layer in layers if layer.tracked and not layer.frozen]
        if not chosen:
            raise ValueError(
                "no BatchNorm layer is left to recalibrate: all are frozen or store no running statistics; "
                f"name the frozen ones in `layers`, allowed are {_listed(layers)}"
            )
        return chosen
    if isinstance(names, str):
        raise ValueError(f"layers must be a list of layer names, got the string {names!r}; pass layers=[{names!r}]")
    wanted = list(names)
    known = {layer.name: layer for layer in layers}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(
            f"layers must name BatchNorm layers of the model, got {', '.join(map(repr, unknown))}; "
            f"allowed are {_listed(layers)}"
        )
    if not wanted:
        raise ValueError(f"layers must name at least one BatchNorm layer, got none; allowed are {_listed(layers)}")
    for name in wanted:
        known[name].statistics()
    return [layer for layer in layers if layer.name in set(wanted)]


def _is_frozen(module: _BatchNorm, model: nn.Module) -> bool:
    if module.training:
        return False
    affine = [parameter for parameter in (module.weight, module.bias) if parameter is not None]
    return model.training or (bool(affine) and not any(parameter.requires_grad for parameter in affine))


def _listed(layers: Sequence[Layer]) -> str:
    return ", ".join(repr(layer.name) for layer in layers if layer.tracked) or "none"
