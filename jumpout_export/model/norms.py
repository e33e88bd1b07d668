"""What is a BatchNorm: the one place that knows which modules serve with running statistics, and how each is used.

A new kind of BatchNorm is added here: what recognises it, its channels, and how it is made to normalise by its batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

# Buffers of torch's layers, and arguments of torch's operators.
STATISTICS = ("running_mean", "running_var")
COUNTER = "num_batches_tracked"


def serves_with_statistics(module: nn.Module) -> bool:
    """Whether a module is a BatchNorm (also one without running statistics), a tracking InstanceNorm or a fixed one."""
    if is_quantized(module):
        return False
    if is_instance_norm(module):
        return module.running_mean is not None and bool(module.track_running_stats)
    return is_batchnorm(module) or is_fixed(module)


def named_norms(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yields path and module of what serves with statistics, each module once."""
    return ((path, module) for path, module in model.named_modules() if serves_with_statistics(module))


def is_batchnorm(module: Any) -> bool:
    """Whether a module normalises by its batch in training, and in eval mode by running statistics if it keeps any."""
    return isinstance(module, _BatchNorm)


def is_torch_norm(module: Any) -> bool:
    """Whether a module is one of torch's BatchNorms or InstanceNorms, or a subclass."""
    return isinstance(module, _NormBase)


def is_instance_norm(module: Any) -> bool:
    """Whether a module normalises each sample by itself in training."""
    return isinstance(module, _InstanceNorm)


def is_fixed(module: nn.Module) -> bool:
    """Whether a module is a FrozenBatchNorm: torchvision's, detectron2's and their many copies, known by name.

    It knows no training mode: its statistics are constants that can only be overwritten.
    """
    named = any("FrozenBatchNorm" in cls.__name__ for cls in type(module).__mro__)
    return named and all(isinstance(module._buffers.get(name), Tensor) for name in ("weight", "bias", *STATISTICS))


def is_quantized(module: nn.Module) -> bool:
    """Whether a module is one of torch.ao's that compute on quantised tensors."""
    return type(module).__module__.startswith("torch.ao.nn.quantized")


def channels(module: Any) -> int:
    """Returns the number of channels C of a module that serves with statistics."""
    return module.num_features if is_torch_norm(module) else len(module.running_mean)


def momentum(module: Any) -> float | None:
    """Returns the weight of a new batch in a norm's moving average; None averages all batches alike."""
    return module.momentum if is_torch_norm(module) else 0.0


def eps(module: Any) -> float:
    """Returns what a norm adds to the variance; a copy of FrozenBatchNorm2d may hold it in its forward alone."""
    return float(getattr(module, "eps", 1e-5))


def batches_tracked(module: Any) -> int | None:
    """Returns the batches in a norm's moving average; None where they are not counted."""
    counted = getattr(module, COUNTER, None)
    return None if counted is None else int(counted)


def is_plain(module: Any) -> bool:
    """Whether a module computes what torch's BatchNorm does, so that it can be handed statistics in eval mode."""
    return type(module).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward) and "forward" not in vars(module)


def hands_on_its_input(module: Any) -> bool:
    """Whether what a norm normalises is what its module gets, along axis 1; a subclass may move or split it before."""
    return is_plain(module) or is_fixed(module)


def use_batch(module: Any) -> None:
    """Makes a norm normalise by its batch, by flags only; a fixed one knows no such mode.

    A BatchNorm then updates no buffer; an InstanceNorm, which normalises each sample by itself, does.
    """
    if is_fixed(module):
        return
    if isinstance(module, nn.SyncBatchNorm):
        # In training mode it would wait for other processes, and refuse a CPU. In eval mode without running
        # statistics it normalises by the batch, too, and does neither. A subclass may read its buffers itself: it stays
        # as it is, and what it calls is told to take the batch.
        if is_plain(module):
            module._buffers["running_mean"] = module._buffers["running_var"] = None
    else:
        module.training = True
        # F.batch_norm then gets no buffers to update, and num_batches_tracked is not counted up.
        module.track_running_stats = False


def stores_statistics(module: nn.Module) -> bool:
    """Whether a module holds buffers called as torch's running statistics, whatever it is."""
    return set(STATISTICS) <= module._buffers.keys()


def statistics_owners(model: nn.Module) -> list[str]:
    """Returns the paths of modules that hold a running mean, also in an exported program, where classes are lost."""
    return [name.rpartition(".")[0] for name, _ in model.named_buffers() if name.endswith(STATISTICS[0])]
