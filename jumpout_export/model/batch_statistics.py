"""Finds calls that normalise by the statistics of the batch, by running the model; in eval mode none should."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from jumpout_export.model.tracing import Call, module_stack, user_frame

# Where `training` stands in the arguments of F.batch_norm and torch.batch_norm alike.
_TRAINING = 5


def batch_statistics_calls(model: nn.Module, run: Callable[[], Any], known: Collection[str] = ()) -> list[Call]:
    """Returns the calls of `batch_norm` with `training=True` while `run()` ran `model`, in call order, each place once.

    The own calls of modules with `known` paths, such as BatchNorm layers, are left out.
    """
    stack: list[str] = []
    with module_stack(model, stack), _BatchNormCalls(stack, known) as seen, torch.no_grad():
        run()
    return list(dict.fromkeys(seen.calls))


class _BatchNormCalls(TorchFunctionMode):
    # Not a dispatch mode: there F.instance_norm, which depends on no batch, is a batch_norm as well.

    def __init__(self, stack: list[str], known: Collection[str]) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._stack = stack
        self._known = known

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        module = self._stack[-1] if self._stack else ""
        if (
            "batch_norm" in getattr(func, "__name__", "")
            and module not in self._known
            and _training(func, args, kwargs)
        ):
            self.calls.append(Call(func.__name__, module, *user_frame()))
        return func(*args, **kwargs)


def _training(func: Any, args: Any, kwargs: Any) -> bool:
    if isinstance(func, torch._ops.OpOverload):
        names = [argument.name for argument in func._schema.arguments]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        return bool(given.get("training", "with_update" in str(func)))
    return bool(kwargs.get("training", args[_TRAINING] if len(args) > _TRAINING else False))
