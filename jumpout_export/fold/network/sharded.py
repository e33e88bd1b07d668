"""Networks whose weights are spread over processes (FSDP, fully_shard, tensor parallelism), whole again."""

from __future__ import annotations

import contextlib
import copy
import functools
from typing import Any

from torch import Tensor, nn

from jumpout_export.model.wrappers import SHARDED, is_wrapper

# Classes that torch puts before a module's own, by name, because importing them takes seconds.
_MIXED_IN = ("FSDPModule", "ReplicateModule", "DDP")
_STATE = "__composable_api_state_key"


def gathered(model: nn.Module) -> nn.Module:
    """Returns a copy with whole weights that talks to no other process; the model itself where nothing is spread.

    Where several processes hold it, all of them have to call this, as they have to for a state dict. The weights keep
    the precision in which they are stored, whatever a policy of mixed precision computes in.
    """
    wrapped = [module for module in model.modules() if is_wrapper(module, SHARDED)]
    if not wrapped and not any(map(_is_spread, model.modules())):
        return model
    with _whole(model) if wrapped else contextlib.nullcontext():
        memo: dict[int, Any] = {}
        tensors = (*model.parameters(), *model.buffers())
        memo |= {id(tensor): _full(tensor) for tensor in tensors if _is_distributed(tensor)}
        spread: list[tuple[nn.Module, Any]] = [
            (module, object.__new__(_class_of(module))) for module in model.modules() if _is_spread(module)
        ]
        memo |= {id(module): new for module, new in spread}
        for module in reversed(wrapped):  # inner ones first
            memo[id(module)] = copy.deepcopy(module._fsdp_wrapped_module, memo)
        for module, new in spread:
            for name, value in vars(module).items():
                if not name.startswith(_STATE):
                    new.__dict__[name] = copy.deepcopy(_without_hooks(name, value), memo)
        copied: nn.Module = copy.deepcopy(model, memo)
    return copied


def _whole(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """While it lasts the modules hold their whole weights."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    whole: contextlib.AbstractContextManager[None] = FullyShardedDataParallel.summon_full_params(model, writeback=False)
    return whole


def _is_spread(module: nn.Module) -> bool:
    hooks = [
        hook for group in ("_forward_hooks", "_forward_pre_hooks") for hook in vars(module).get(group, {}).values()
    ]
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return _class_of(module) is not type(module) or any(map(_talks, hooks)) or any(map(_is_distributed, own))


def _class_of(module: nn.Module) -> type:
    """The class that the module had before torch put another in its place."""
    bases = type(module).__bases__
    mixed = any(base.__name__ in _MIXED_IN and base.__module__.startswith("torch.distributed.") for base in bases)
    return bases[-1] if mixed else type(module)


def _is_distributed(tensor: Tensor) -> bool:
    return any(cls.__name__ == "DTensor" for cls in type(tensor).__mro__)


def _full(tensor: Any) -> Tensor:
    whole: Tensor = tensor.full_tensor().detach().clone()
    return nn.Parameter(whole, tensor.requires_grad) if tensor._is_param else whole


def _talks(hook: Any) -> bool:
    """Whether a hook is one of torch.distributed's."""
    function = hook.func if isinstance(hook, functools.partial) else hook
    return str(getattr(function, "__module__", "")).startswith("torch.distributed.")


def _without_hooks(name: str, value: Any) -> Any:
    if not name.endswith("_hooks") or not isinstance(value, dict):
        return value
    return type(value)((key, hook) for key, hook in value.items() if not _talks(hook))
