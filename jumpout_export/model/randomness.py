"""Finds out whether a model draws random numbers, by running it: which operator, in which module, on which line."""

from __future__ import annotations

import contextlib
import operator
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode

from jumpout_export.model.tracing import Call, module_stack, user_frame

_TORCH_GENERATOR = "torch generator"


class RandomCall(Call):
    """A call that drew random numbers; `numpy.random` and the like stand for generators torch does not own."""


def random_calls(model: nn.Module, run: Callable[[], Any]) -> list[RandomCall]:
    """Returns the calls that drew random numbers while `run()` ran `model`, in call order, each place once.

    Torch's operators are caught one by one: an operator that may be random counts if a generator moved or if it was
    given one. Torch's, NumPy's and Python's global generators are also compared before and after the whole run. A
    generator hidden elsewhere (a private `numpy.random.Generator`, a C library) shows as two runs that differ:
    `repeated` finds those.
    All generator states are restored; modules and flags are not touched.
    """
    with rng_restored():
        before = generator_states()
        stack: list[str] = []
        with module_stack(model, stack), _RandomOperators(stack) as seen, torch.no_grad():
            try:
                run()
            finally:
                if seen.higher_order:
                    # They compile themselves, and what was compiled under a dispatch mode fails without one.
                    torch._dynamo.reset()
        calls = list(dict.fromkeys(seen.calls))
        moved = moved_generators(before)
    # A torch operator that was caught is the better name for a torch generator that moved.
    return calls + [RandomCall(name) for name in moved if name != _TORCH_GENERATOR or not calls]


def repeated(run: Callable[[], Any], *, other_seed: bool) -> tuple[Any, bool]:
    """Returns what `run()` returns, and whether a second run gives the same bits; NaNs agree with NaNs.

    The second run starts with the same states of the global generators, or with other ones; all are restored.
    """
    with torch.no_grad():
        with rng_restored():
            result = run()
        with rng_restored():
            if other_seed:
                reseed()
            return result, same_bits(result, run())


def reseed(seed: int = 0x5EED) -> None:
    """Seeds torch's (CPU and CUDA), NumPy's and Python's global generators; call it under `rng_restored`."""
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed CUDA once it is initialised
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def generator_states() -> tuple[Any, ...]:
    """Returns the states of torch's (CPU and CUDA), NumPy's and Python's global generators, for `moved_generators`."""
    return _torch_states(), _numpy_state(), random.getstate()


def moved_generators(before: tuple[Any, ...]) -> list[str]:
    """Returns the names of the global generators whose states are not what they were."""
    names = (_TORCH_GENERATOR, "numpy.random", "random (Python's)")
    (torch_before, *others_before), (torch_now, *others_now) = before, generator_states()
    # The others are plain values, hundreds of them: looked at one by one they took longer than a small network.
    same = same_bits(torch_before, torch_now), *map(operator.eq, others_before, others_now)
    return [name for name, is_same in zip(names, same, strict=True) if not is_same]


def same_bits(first: Any, second: Any) -> bool:
    """Whether two nested outputs hold the same structure and bitwise equal tensors."""
    one, one_spec = torch.utils._pytree.tree_flatten(first)
    two, two_spec = torch.utils._pytree.tree_flatten(second)
    return one_spec == two_spec and all(_same(a, b) for a, b in zip(one, two, strict=True))


def tensor_bytes(tensor: Tensor) -> Tensor:
    """Returns a tensor's bytes, so that NaN equals NaN and -0 differs from 0: (bytes,) uint8."""
    flat = tensor.detach().contiguous().reshape(-1)
    # A single value counts as contiguous whatever its stride, and only a stride of 1 can be viewed as bytes.
    return flat.as_strided(flat.shape, (1,)).view(torch.uint8)


@contextlib.contextmanager
def rng_restored() -> Iterator[None]:
    """Restores the states of torch's (CPU and CUDA), NumPy's and Python's global generators on the way out."""
    numpy, python = np.random.get_state(), random.getstate()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            np.random.set_state(numpy)
            random.setstate(python)


def is_generator(value: Any) -> bool:
    """Whether `value` is a random generator of torch, NumPy or Python."""
    return isinstance(value, torch.Generator | np.random.Generator | np.random.RandomState | random.Random)


def get_generator_state(generator: Any) -> Any:
    """Returns the state of what `is_generator` says is one, for `set_generator_state`."""
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state()


def set_generator_state(generator: Any, state: Any) -> None:
    """Puts a generator into a state that `get_generator_state` returned."""
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)


class _RandomOperators(TorchDispatchMode):
    # torch.cond and its like run as one operator.
    supports_higher_order_operators = True

    def __init__(self, stack: list[str]) -> None:
        super().__init__()
        self.higher_order = False
        self.calls: list[RandomCall] = []
        self._stack = stack

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.higher_order |= isinstance(func, HigherOrderOperator)
        # What a custom operator (or torch.cond) draws inside is not dispatched again, whatever its tags say.
        foreign = getattr(func, "namespace", "") not in ("aten", "prim", "prims")
        if not foreign and torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        before = _torch_states()
        result = func(*args, **kwargs)
        given = any(isinstance(value, torch.Generator) for value in (*args, *kwargs.values()))
        if given or not same_bits(before, _torch_states()):
            self.calls.append(RandomCall(str(func), self._stack[-1] if self._stack else "", *user_frame()))
        return result


def _torch_states() -> list[Tensor]:
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():
        states += torch.cuda.get_rng_state_all()
    return states


def _numpy_state() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state(legacy=True)
    return (name, np.asarray(keys).tobytes(), *rest)


def _same(first: Any, second: Any) -> bool:
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return type(first) is type(second) and bool(first == second)
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    one, two = tensor_bytes(first), tensor_bytes(second)
    if all(tensor.numel() % 8 == 0 and tensor.storage_offset() % 8 == 0 for tensor in (one, two)):
        one, two = one.view(torch.int64), two.view(torch.int64)  # one by one takes six times as long
    return bool(torch.equal(one, two))
