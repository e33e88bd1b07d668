"""A model with the dropout of some modules switched off: what its Monte-Carlo noise is noise around."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from jumpout_export.fold.network.audit import allowed

_DROPOUTS = frozenset(
    {
        *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout),
        *(torch.dropout, torch.feature_dropout, torch.alpha_dropout, torch.feature_alpha_dropout),
    }
)


def switched_off(model: nn.Module, allow: tuple[str, ...]) -> nn.Module:
    """Returns a copy in which the allowed modules compute without dropout, functional forms included.

    Args:
        model: in eval mode.
        allow: module paths; what lies below them counts too.
    """
    quiet = copy.deepcopy(model)
    for path, module in quiet.named_modules():
        if allowed(path, allow):
            cls = type(module)
            module.__class__ = type(cls.__name__, (cls,), {"forward": _quietly(cls.forward)})
    return quiet


def _quietly(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        with _NoDropout():
            return forward(*args, **kwargs)

    return run


class _NoDropout(TorchFunctionMode):
    """Dropout of every kind returns its input."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func is F.scaled_dot_product_attention:
            args, kwargs = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args, {**kwargs}
            if "dropout_p" in kwargs:
                kwargs["dropout_p"] = 0.0
        return func(*args, **kwargs)
