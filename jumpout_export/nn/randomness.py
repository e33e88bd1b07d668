"""Finds out whether a model draws random numbers, by running it: which operator, in which module, on which line."""

from __future__ import annotations

import contextlib
import random
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_TORCH = str(Path(torch.__file__).parent)
_PACKAGE = Path(__file__).parents[1]
_INNER = (_TORCH, *(str(_PACKAGE / layer) for layer in ("nn", "batchnorm", "export", "ops.py")), "<")


@dataclass(frozen=True)
class RandomCall:
    """A call that drew random numbers.

    Attributes:
        operator: for example `aten.bernoulli_.float`, or `numpy.random` for a generator torch does not own.
        module: path of the innermost module that was running; empty for the root or where it is unknown.
        file: the user's source file, empty where it is unknown.
        line: line in that file, 0 where it is unknown.
    """

    operator: str
    module: str = ""
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        where = f" in module `{self.module}`" if self.module else " in the model's own forward"
        source = f" at {self.file}:{self.line}" if self.file else ""
        return f"{self.operator}{where}{source}"


def random_calls(model: nn.Module, run: Callable[[], Any]) -> list[RandomCall]:
    """Returns the calls that drew random numbers while `run()` ran `model`, in call order, each place once.

    Torch's operators are caught one by one: an operator that may be random counts if a generator moved or if it was
    given one. NumPy's and Python's global generators are compared before and after. A generator hidden elsewhere (a
    private `numpy.random.Generator`, a C library) shows as two runs that differ: `runs_agree` finds those.
    All generator states are restored; modules and flags are not touched.
    """
    with rng_restored():
        numpy_before, python_before = _numpy_state(), random.getstate()
        stack: list[str] = []
        with _module_stack(model, stack), _RandomOperators(stack) as seen, torch.no_grad():
            run()
        calls = list(dict.fromkeys(seen.calls))
        if _numpy_state() != numpy_before:
            calls.append(RandomCall("numpy.random"))
        if random.getstate() != python_before:
            calls.append(RandomCall("random (Python's)"))
    return calls


def runs_agree(run: Callable[[], Any]) -> bool:
    """Whether two runs give bitwise equal results; NaNs agree with NaNs. Generator states are restored."""
    with rng_restored(), torch.no_grad():
        return same_bits(run(), run())


def same_bits(first: Any, second: Any) -> bool:
    """Whether two nested outputs hold the same structure and bitwise equal tensors."""
    one, one_spec = torch.utils._pytree.tree_flatten(first)
    two, two_spec = torch.utils._pytree.tree_flatten(second)
    return one_spec == two_spec and all(_same(a, b) for a, b in zip(one, two, strict=True))


@contextlib.contextmanager
def rng_restored() -> Iterator[None]:
    """Restores the states of torch's (CPU and CUDA), NumPy's and Python's global generators on the way out."""
    cuda = torch.cuda.is_initialized()
    saved = torch.get_rng_state(), torch.cuda.get_rng_state_all() if cuda else [], np.random.get_state()
    python = random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(saved[0])
        if cuda:
            torch.cuda.set_rng_state_all(saved[1])
        np.random.set_state(saved[2])
        random.setstate(python)


class _RandomOperators(TorchDispatchMode):
    def __init__(self, stack: list[str]) -> None:
        super().__init__()
        self.calls: list[RandomCall] = []
        self._stack = stack

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        before = _torch_states()
        result = func(*args, **kwargs)
        if _has_generator(args, kwargs) or any(
            not torch.equal(a, b) for a, b in zip(before, _torch_states(), strict=True)
        ):
            file, line = _user_frame()
            self.calls.append(RandomCall(str(func), self._stack[-1] if self._stack else "", file, line))
        return result


@contextlib.contextmanager
def _module_stack(model: nn.Module, stack: list[str]) -> Iterator[None]:
    """Keeps the path of the running module on top of `stack`, by hooks that are removed on the way out."""
    handles = []
    try:
        for path, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(lambda *_, path=path: stack.append(path)))
            handles.append(module.register_forward_hook(lambda *_: stack.pop() and None, always_call=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _torch_states() -> list[Tensor]:
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():
        states += torch.cuda.get_rng_state_all()
    return states


def _numpy_state() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state(legacy=True)
    return (name, np.asarray(keys).tobytes(), *rest)


def _has_generator(args: Any, kwargs: Any) -> bool:
    return any(isinstance(value, torch.Generator) for value in (*args, *kwargs.values()))


def _user_frame() -> tuple[str, int]:
    """File and line of the innermost frame that belongs neither to torch nor to this package's inner layers."""
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith(_INNER):
            return frame.filename, frame.lineno or 0
    return "", 0


def _same(first: Any, second: Any) -> bool:
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return type(first) is type(second) and bool(first == second)
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return bool(torch.equal(_bytes(first), _bytes(second)))


def _bytes(tensor: Tensor) -> Tensor:
    """The tensor's bytes, so that NaN equals NaN and -0 differs from 0."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
