"""Finds the layers with running statistics and says what can be known about them without running the model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from jumpout_export.model import norms
from jumpout_export.model.wrappers import plain_names

_ALLOWED = "BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm, or InstanceNorm with running statistics"


@dataclass(frozen=True)
class Layer:
    """One BatchNorm layer, or another layer that serves with running statistics."""

    # Module path without the parts that wrappers add; a module used under several paths has the first of them. Empty if
    # it is the model itself.
    name: str
    # The layer: a BatchNorm, an InstanceNorm with running statistics, or a module of fixed statistics such as
    # torchvision's FrozenBatchNorm2d (use `eps`, `channels` and so on, which know all of them).
    module: Any
    # Training would not touch its statistics: it is in eval mode while the model trains, or in eval mode with affine
    # parameters that need no gradient, or it holds constants.
    frozen: bool
    paths: tuple[str, ...] = ()  # every path under which the model holds the module, as `named_modules` has them
    aliases: tuple[str, ...] = ()  # the names of the others than the first
    # Class name of the fused module it is part of, such as ConvBn2d of quantisation-aware training, or empty.
    fused: str = ""

    @property
    def label(self) -> str:
        """The name as messages print it."""
        return label(self.name)

    @property
    def kind(self) -> str:
        """Class name."""
        return type(self.module).__name__

    @property
    def channels(self) -> int:
        """Number of channels C."""
        return norms.channels(self.module)

    @property
    def eps(self) -> float:
        """What is added to the variance."""
        return norms.eps(self.module)

    @property
    def momentum(self) -> float | None:
        """Weight of a new batch in the moving average; None averages all batches alike."""
        return norms.momentum(self.module)

    @property
    def batches_tracked(self) -> int | None:
        """Batches in the moving average; None where they are not counted."""
        return norms.batches_tracked(self.module)

    @property
    def per_instance(self) -> bool:
        """Whether the layer is an InstanceNorm, whose statistics are averages over samples of each sample's own."""
        return norms.is_instance_norm(self.module)

    @property
    def fixed(self) -> bool:
        """Whether the layer knows no training mode: its statistics are constants that can only be overwritten."""
        return norms.is_fixed(self.module)

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
        var = var.double() + self.eps
        return ~torch.isfinite(mean) | ~torch.isfinite(var) | (var <= 0)


def label(name: str) -> str:
    """Returns a layer's name as messages print it."""
    return f"`{name}`" if name else "the model itself"


def batchnorm_layers(model: nn.Module) -> list[Layer]:
    """Returns the layers of `model` that serve with running statistics, in registration order.

    They are BatchNorm1d, 2d, 3d, SyncBatchNorm and subclasses, those without running statistics too; InstanceNorm1d,
    2d, 3d with `track_running_stats=True`; and fixed ones such as torchvision's FrozenBatchNorm2d.

    Raises:
        TypeError: if `model` is no nn.Module.
        ValueError: if there is none, or a part of the model is lazy and was not initialised yet.
    """
    if not isinstance(model, nn.Module):
        what = "; pass the model that was exported" if type(model).__name__ == "ExportedProgram" else ""
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}{what}")
    names = plain_names(model)
    paths: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if norms.serves_with_statistics(module) and path not in paths.setdefault(module, []):
            paths[module].append(path)
    layers = [_layer(module, places, names, model) for module, places in paths.items()]
    if not layers:
        raise ValueError(nothing_found(model))
    for layer in layers:
        if layer.tracked and is_lazy(layer.statistics()[0]):
            raise ValueError(f"BatchNorm {layer.label} is not initialised yet; run one forward pass of the model first")
    for path, module in model.named_modules():
        if any(map(is_lazy, module.parameters(recurse=False))):
            raise ValueError(
                f"{type(module).__name__} {label(names[path])} is not initialised yet; run one forward pass of the "
                "model first"
            )
    return layers


def not_measured(names: Sequence[str], own_code: Collection[str]) -> list[str]:
    """Returns why the layers of these names were not measured, as clauses; those in `own_code` ran all the same."""
    missed = ", ".join(label(name) for name in names if name not in own_code)
    followed = ", ".join(label(name) for name in names if name in own_code)
    found = [f"the forward pass did not reach {missed}"] if missed else []
    if followed:
        found.append(
            f"what {followed} normalises could not be told, because its forward calls no F.batch_norm, or that on some "
            "of its channels only"
        )
    return found


def select_layers(layers: Sequence[Layer], names: Iterable[str] | None) -> list[Layer]:
    """Returns the layers that may be recalibrated: those named, or by default all that are not frozen.

    BatchNorms of quantisation-aware training count as frozen: their modules round weights to ranges that were observed
    with the stored variance.

    Raises:
        ValueError: if a name is unknown, a named layer stores no statistics, or nothing is left.
    """
    if names is None:
        chosen = [layer for layer in layers if layer.tracked and not layer.frozen and not layer.fused]
        if not chosen:
            raise ValueError(
                "no BatchNorm layer is left to recalibrate: all are frozen or store no running statistics (those of "
                f"quantisation-aware modules count as frozen); name some in `layers`, allowed are {_listed(layers)}"
            )
        return chosen
    if isinstance(names, str):
        raise ValueError(f"layers must be a list of layer names, got the string {names!r}; pass layers=[{names!r}]")
    wanted = list(names)
    known = {name: layer for layer in layers for name in (*layer.paths, *layer.aliases)}
    known |= {layer.name: layer for layer in layers}
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
    chosen_names = {known[name].name for name in wanted}
    return [layer for layer in layers if layer.name in chosen_names]


def _layer(module: Any, paths: list[str], names: dict[str, str], model: nn.Module) -> Layer:
    own = list(dict.fromkeys(names[path] for path in paths))
    parent = model.get_submodule(paths[0].rpartition(".")[0])
    # Fused modules of quantisation-aware training, torch.ao's and torchao's: the convolution and its BatchNorm in one.
    fused = type(parent).__name__ if parent is not module and ".qat" in type(parent).__module__ else ""
    frozen = norms.is_fixed(module) or _is_frozen(module, model)
    return Layer(own[0], module, frozen, tuple(paths), tuple(own[1:]), fused)


def _is_frozen(module: Any, model: nn.Module) -> bool:
    if module.training:
        return False
    if model.training:
        return True
    affine = [parameter for parameter in (module.weight, module.bias) if parameter is not None]
    without_gradient = bool(affine) and not any(parameter.requires_grad for parameter in affine)
    # Where no parameter at all needs a gradient, the model was put so to be served, and it says nothing about training.
    return without_gradient and any(parameter.requires_grad for parameter in model.parameters())


def _listed(layers: Sequence[Layer]) -> str:
    return ", ".join(repr(layer.name) for layer in layers if layer.tracked) or "none"


def nothing_found(model: nn.Module) -> str:
    """Returns the message for a model in which no layer with running statistics was found."""
    kind = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        return (
            f"{kind} is a torch.jit.ScriptModule, whose BatchNorm layers cannot be observed; pass the Python model it "
            "was made from, with the same weights"
        )
    hidden = unseen(model)
    if hidden:
        return f"{kind} has no BatchNorm layer that can be observed: {' '.join(hidden)}"
    return (
        f"{kind} has no BatchNorm layer, so there is nothing to check or recalibrate; pass a model with {_ALLOWED}, "
        "and before its BatchNorms are folded into convolutions"
    )


def unseen(model: nn.Module) -> list[str]:
    """Returns a sentence for each part of `model` that may normalise by running statistics and was not checked."""
    names = plain_names(model)
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        why = _why_unseen(module)
        inside = any(outer == "" or path.startswith(f"{outer}.") for outer in found)
        if why and not inside:
            where = f"`{names[path]}`" if names[path] else "the model"
            found[path] = f"{where} {why}."
    return list(found.values())


def averaged_copy(model: nn.Module) -> list[str]:
    """Returns a sentence if `model` is an average of weights whose BatchNorm statistics were not averaged with them."""
    if not isinstance(model, AveragedModel) or model.use_buffers:
        return []
    sentence = (
        "The model is an AveragedModel (SWA or EMA) with use_buffers=False: its weights are averages, but its "
        "BatchNorm statistics are those of the model it was made from; recalibrate it with "
        "recalibrate_batchnorm(model, batches) before use."
    )
    return [sentence]


def _why_unseen(module: nn.Module) -> str:
    if isinstance(module, torch.jit.ScriptModule):
        return "is a torch.jit.ScriptModule: BatchNorms in it, if any, cannot be observed; use the Python module"
    if isinstance(module, torch.fx.GraphModule) and (count := _batch_norms(module)):
        return (
            f"is a graph with {count} batch_norm operators, which cannot be observed; pass the model it was exported "
            "or traced from"
        )
    if not norms.stores_statistics(module):
        return ""
    kind = type(module).__name__
    if norms.is_quantized(module):
        return f"({kind}) is quantised, its statistics too; check the float model, before it is converted"
    if norms.is_torch_norm(module) or norms.is_fixed(module):
        return ""
    return f"({kind}) stores running_mean and running_var but is none of {_ALLOWED}; it was not checked"


def _batch_norms(module: torch.fx.GraphModule) -> int:
    targets = (node.target for node in module.graph.nodes if node.op == "call_function")
    return sum("batch_norm" in getattr(target, "__name__", str(target)) for target in targets)
