"""What modules hold besides tensors and numbers: plain objects with a state of their own, and random generators."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from jumpout_export.nn.randomness import get_generator_state, is_generator, same_bits

# Of objects in objects; and of values per module, so that a large table that a module holds costs little.
_DEPTH = 4
_MOST = 10_000
# Of no interest, or with a cache that any call may fill.
_SKIPPED = (nn.Module, Tensor, type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType)
_FOREIGN = ("torch", "logging", "threading", "multiprocessing", "concurrent", "weakref", "functools", "_thread")


def held_values(name: str, value: Any, seen: dict[int, Any]) -> Iterator[tuple[str, Any]]:
    """Yields what is in an attribute, as names and leaves: of lists, dicts and, attribute by attribute, plain objects.

    Args:
        name: of the attribute.
        value: its value.
        seen: objects that were visited, by id; these are not visited again.
    """
    left = [(name, value, 0)]
    for _ in range(_MOST):
        if not left:
            return
        path, current, depth = left.pop()
        for leaf in torch.utils._pytree.tree_leaves(current):
            own = {} if depth == _DEPTH or id(leaf) in seen else _attributes(leaf)
            if own:
                seen[id(leaf)] = leaf
                left += [(f"{path}.{key}", item, depth + 1) for key, item in reversed(own.items())]
            yield path, leaf


def generator_snapshot(model: nn.Module) -> dict[str, tuple[str, Any]]:
    """Returns the states of the random generators that modules hold: name to (path of the module, state)."""
    found: dict[str, tuple[str, Any]] = {}
    seen: dict[int, Any] = {}
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            name = f"{path}.{key}" if path else key
            for place, leaf in () if key in ("_modules", "_parameters", "_buffers") else held_values(name, value, seen):
                if is_generator(leaf):
                    found[place] = path, get_generator_state(leaf)
    return found


def moved(before: dict[str, tuple[str, Any]], after: dict[str, tuple[str, Any]]) -> dict[str, str]:
    """Returns the generators whose states differ, name to path of the module; a generator that is new does not."""
    return {
        name: path
        for name, (path, state) in before.items()
        if name in after and not same_bits(_comparable(state), _comparable(after[name][1]))
    }


def _comparable(state: Any) -> Any:
    """NumPy's states hold arrays, which have no single truth."""
    return state if isinstance(state, Tensor) else repr(torch.utils._pytree.tree_map(_bytes, state))


def _bytes(value: Any) -> Any:
    return value.tobytes() if hasattr(value, "tobytes") else value


def _attributes(value: Any) -> dict[str, Any]:
    """The attributes of a plain object, none of anything else."""
    kind = type(value)
    if isinstance(value, _SKIPPED) or is_generator(value) or kind.__module__.split(".")[0] in _FOREIGN:
        return {}
    own = getattr(value, "__dict__", None)
    found = dict(own) if isinstance(own, dict) else {}
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                found[name] = getattr(value, name)
    return found
