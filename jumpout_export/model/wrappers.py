"""What stands around a network, such as DistributedDataParallel or torch.compile: names without it, and plain calls."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn

# Class name of the wrapper -> the attribute that holds the network. By name, because importing torch._dynamo or FSDP
# takes seconds and nothing that was not imported can be around the model.
_NETWORK = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",  # torch.optim.swa_utils
    "OptimizedModule": "_orig_mod",  # torch.compile
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
}

COMPILED = "OptimizedModule"
DISTRIBUTED = "DistributedDataParallel"
SHARDED = "FullyShardedDataParallel"
# What stands in paths and state dicts most often, for those that have no more than the names.
PARTS = ("module", "_orig_mod")


def unwrap(model: Any, wrappers: Collection[str] = _NETWORK) -> Any:
    """Returns the network inside every wrapper of these kinds that stands around `model`, or `model` itself."""
    while (kind := _wrapper(model)) is not None and kind in wrappers:
        model = getattr(model, _NETWORK[kind])
    return model


def is_wrapper(module: Any, kind: str) -> bool:
    """Whether `module` is a wrapper of torch's of this kind."""
    return _wrapper(module) == kind


def call_networks(copied: nn.Module) -> nn.Module:
    """Returns the model, in which wrappers for several devices or processes now do nothing but call their network.

    Modifies it in place; for copies.
    """
    for module in copied.modules():
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module.__dict__["forward"] = module.module.__call__
    return copied


def plain_names(model: nn.Module) -> dict[str, str]:
    """Returns, by module path, the path without the parts that wrappers add, such as `module.` and `_orig_mod.`.

    Every path is there, those of a module that is used twice too. A path stays as it is where another module would
    have the same name.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    plain: dict[str, str] = {}
    for path in modules:  # outer modules come first
        outer, _, part = path.rpartition(".")
        dropped = path == "" or part == _NETWORK.get(_wrapper(modules[outer]) or "")
        plain[path] = plain.get(outer, "") if dropped else f"{plain[outer]}.{part}".removeprefix(".")
    # A wrapper and the network in it share a name; the wrapper is nothing anybody asks for.
    uses = Counter(plain[path] for path, module in modules.items() if _wrapper(module) is None)
    return {path: name if uses[name] <= 1 else path for path, name in plain.items()}


def without_wrappers(name: str) -> str:
    """Returns a path without every part that is called as wrappers call the network that they hold.

    For names alone, where the modules are not at hand; a module of the user's may be called so, too.
    """
    return ".".join(part for part in name.split(".") if part not in PARTS)


@contextlib.contextmanager
def plain_calls(model: nn.Module) -> Iterator[None]:
    """Calls go to the network itself, in eager mode, on its own device and without talking to other processes.

    Compiled parts run uncompiled: their hooks fire on every call, and nothing compiles anew when flags change.
    DataParallel does not spread a batch over devices, where replicas would count for themselves, and
    DistributedDataParallel does not send its buffers around, for which all ranks would need as many batches.
    """
    with contextlib.ExitStack() as stack:
        # Only what has imported it can have compiled anything; importing it takes a second.
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for module in model.modules():
            if isinstance(module, nn.DataParallel):
                stack.callback(setattr, module, "device_ids", module.device_ids)
                module.device_ids = []
            elif isinstance(module, nn.parallel.DistributedDataParallel):
                stack.callback(setattr, module, "require_forward_param_sync", module.require_forward_param_sync)
                module.require_forward_param_sync = False
        yield


def _wrapper(module: Any) -> str | None:
    """The class name of a wrapper of torch's, None if `module` is none."""
    for cls in type(module).__mro__:
        if cls.__name__ in _NETWORK and cls.__module__.startswith("torch."):
            return cls.__name__
    return None
