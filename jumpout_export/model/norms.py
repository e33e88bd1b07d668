"""Which modules serve with running statistics."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm


def serves_with_statistics(module: nn.Module) -> bool:
    """Whether a module is a BatchNorm (also one without running statistics), a tracking InstanceNorm or a fixed one."""
    if is_quantized(module):
        return False
    if is_instance_norm(module):
        return module.running_mean is not None and bool(module.track_running_stats)
    return isinstance(module, _BatchNorm) or is_fixed(module)


def is_torch_norm(module: Any) -> bool:
    """Whether a module is one of torch's BatchNorms or InstanceNorms, or a subclass."""
    return isinstance(module, _NormBase)


def is_instance_norm(module: Any) -> bool:
    """Whether a module normalises each image by itself in training."""
    return isinstance(module, _InstanceNorm)


def is_fixed(module: nn.Module) -> bool:
    """Whether a module is a FrozenBatchNorm: torchvision's, detectron2's and their many copies, known by name."""
    named = any("FrozenBatchNorm" in cls.__name__ for cls in type(module).__mro__)
    return named and all(
        isinstance(module._buffers.get(name), Tensor) for name in ("weight", "bias", "running_mean", "running_var")
    )


def is_quantized(module: nn.Module) -> bool:
    """Whether a module is one of torch.ao's that compute on quantised tensors."""
    return type(module).__module__.startswith("torch.ao.nn.quantized")
