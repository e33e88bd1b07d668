"""The calls of `batch_norm` and `instance_norm` that a running model makes; in eval mode none should use its batch."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from jumpout_export.model.tracing import Call, module_stack, user_frame

# Arguments by position: of torch.nn.functional, and of torch's own functions and operators.
_FUNCTIONAL = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_OWN = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps", "cudnn_enabled")


@dataclass(frozen=True)
class NormCall:
    """One call of batch_norm or instance_norm, in whichever form, with its arguments by name."""

    function: Callable[..., Any]
    given: dict[str, Any]
    per_instance: bool  # each sample is normalised by itself where batch_norm would take the batch

    @property
    def input(self) -> Tensor:
        """What is normalised: (N, C, *)."""
        x: Tensor = self.given["input"]
        return x

    @property
    def training(self) -> bool:
        """Whether it normalises by what it is given, not by running statistics."""
        return bool(self.given.get(self._switch, self.per_instance or "with_update" in str(self.function)))

    def by_batch(self) -> Any:
        """Returns what the call would if it normalised by what it is given; no statistics are updated."""
        return self.function(**{**self.given, "running_mean": None, "running_var": None, self._switch: True})

    @property
    def _switch(self) -> str:
        return "use_input_stats" if self.per_instance else "training"


def norm_call(function: Any, args: Any, kwargs: Any) -> NormCall | None:
    """Returns what a function that torch is about to call normalises, None if it is no batch_norm or instance_norm."""
    name = getattr(function, "__name__", "")
    if "batch_norm" not in name and "instance_norm" not in name:
        return None
    if isinstance(function, torch._ops.OpOverload):
        names: tuple[str, ...] = tuple(argument.name for argument in function._schema.arguments)
    else:
        names = _FUNCTIONAL if function in (F.batch_norm, F.instance_norm) else _OWN
    per_instance = "instance_norm" in name
    if per_instance:
        names = tuple("use_input_stats" if one == "training" else one for one in names)
    given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
    return NormCall(function, given, per_instance) if isinstance(given.get("input"), Tensor) else None


def batch_statistics_calls(model: nn.Module, run: Callable[[], Any], known: Collection[str] = ()) -> list[Call]:
    """Returns the calls of `batch_norm` with `training=True` while `run()` ran `model`, in call order, each place once.

    The own calls of modules with `known` paths, such as BatchNorm layers, are left out.
    """
    return other_batch_norms(model, run, known)[0]


def other_batch_norms(
    model: nn.Module,
    run: Callable[[], Any],
    known: Collection[str] = (),
    statistics: Collection[Tensor] = (),
    samples: int | None = None,
) -> tuple[list[Call], list[Call]]:
    """Returns the calls of `batch_norm` while `run()` ran `model`: by the batch, and by stored statistics of others.

    Each in call order and each place once. The own calls of modules with `known` paths are left out, and of those by
    what is stored the ones that are given `statistics`, or a part of them. Where a forward is of several `samples`, a
    call on one row is of none of them: weights are standardised so.
    """
    stack: list[str] = []
    with module_stack(model, stack), _BatchNormCalls(stack, known, statistics, samples) as seen, torch.no_grad():
        run()
    return list(dict.fromkeys(seen.by_batch)), list(dict.fromkeys(seen.by_stored))


class _BatchNormCalls(TorchFunctionMode):
    # Not a dispatch mode: there F.instance_norm, which depends on no batch, is a batch_norm as well.

    def __init__(
        self, stack: list[str], known: Collection[str], statistics: Collection[Tensor], samples: int | None
    ) -> None:
        super().__init__()
        self.by_batch: list[Call] = []
        self.by_stored: list[Call] = []
        self._stack = stack
        self._known = known
        self._several = samples is not None and samples > 1
        self._places = {_storage(buffer) for buffer in statistics}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        module = self._stack[-1] if self._stack else ""
        call = norm_call(func, args, kwargs)
        if call is not None and not call.per_instance and module not in self._known:
            mean = call.given.get("running_mean")
            if call.training and not (self._several and len(call.input) == 1):
                self.by_batch.append(Call(func.__name__, module, *user_frame()))
            elif not call.training and isinstance(mean, Tensor) and _storage(mean) not in self._places:
                self.by_stored.append(Call(func.__name__, module, *user_frame()))
        return func(*args, **(kwargs or {}))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
