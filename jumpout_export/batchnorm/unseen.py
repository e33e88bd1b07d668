"""What normalises in a model, but cannot be checked, and why."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from jumpout_export.batchnorm.kinds import is_fixed, is_quantized, is_torch_norm
from jumpout_export.nn.wrappers import plain_names

_ALLOWED = "BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm, or InstanceNorm with running statistics"


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
    if not {"running_mean", "running_var"} <= module._buffers.keys():
        return ""
    kind = type(module).__name__
    if is_quantized(module):
        return f"({kind}) is quantised, its statistics too; check the float model, before it is converted"
    if is_torch_norm(module) or is_fixed(module):
        return ""
    return f"({kind}) stores running_mean and running_var but is none of {_ALLOWED}; it was not checked"


def _batch_norms(module: torch.fx.GraphModule) -> int:
    targets = (node.target for node in module.graph.nodes if node.op == "call_function")
    return sum("batch_norm" in getattr(target, "__name__", str(target)) for target in targets)
