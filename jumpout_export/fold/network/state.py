"""State: what a model's eval forward keeps from one call to the next, and a guard that keeps the user's model as is."""

from __future__ import annotations

import contextlib
import copy
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from jumpout_export.errors import NotFoldableError
from jumpout_export.model.batches import Batch
from jumpout_export.model.randomness import get_generator_state, is_generator, rng_restored, same_bits
from jumpout_export.model.samples import noise_like
from jumpout_export.model.signature import tensors, with_tensors
from jumpout_export.text import joined

# Of objects in objects; and of values per module, so that a large table that a module holds costs little.
_DEPTH = 4
_MOST = 10_000
# Of no interest, or with a cache that any call may fill.
_SKIPPED = (nn.Module, Tensor, type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType)
_FOREIGN = ("torch", "logging", "threading", "multiprocessing", "concurrent", "weakref", "functools", "_thread")

# A state such as a running maximum or minimum shows only after other values than the example's.
_FACTORS = (4.0, 0.25, 1.0)
# Calls that a state is followed for: as many as the second number while it goes on changing, as a counter does. What
# happens at every hundredth call is not found, but noted.
_FOLLOWED = 8, 32
_PLAIN = (bool, int, float, complex, str, bytes, type(None), np.generic)


@dataclass(frozen=True)
class KeptState:
    """What calls in eval mode leave behind."""

    changed: tuple[str, ...]  # names of the parameters, buffers and attributes that they change
    matters: bool  # whether a call's result depends on the calls before it
    # random generators that are held somewhere and draw in every call, name to path of the module
    generators: dict[str, str]


def kept_state(model: nn.Module, batch: Batch, run: Callable[[nn.Module, Batch], Any]) -> KeptState:
    """Returns what calls of a model in eval mode change in it, and whether the first call's bits return after others.

    Only copies of the model are run; `run` raises if it cannot run the batch.
    """
    fresh, used = copy.deepcopy(model), copy.deepcopy(model)
    # Of the copies: a module that pickles itself in its own way, such as einops' Rearrange, comes back in train mode.
    before, before_used = snapshot(fresh, held=True), snapshot(used, held=True)
    with torch.no_grad():
        with rng_restored():
            first = run(fresh, batch)
        for factor in _FACTORS:
            # Other values may be none that the model takes, such as a probability of 4.
            with rng_restored(), contextlib.suppress(Exception):
                run(used, _other(batch, factor))
        now = snapshot(used, held=True)
        names = dict.fromkeys([*changes(before, snapshot(fresh, held=True)), *changes(before_used, now)])
        same = True
        drew: dict[str, str] = {}
        for call in range(_FOLLOWED[1]):
            generators = generator_snapshot(used)
            with rng_restored():
                same = same and same_bits(first, run(used, batch))
            # Only what moves from call to call: a generator that every call seeds anew gives the same each time.
            drew |= moved(generators, generator_snapshot(used))
            earlier, now = now, snapshot(used, held=True)
            names |= dict.fromkeys(found := changes(earlier, now))
            if not same or not names or (call + 1 >= _FOLLOWED[0] and not found):
                break
    return KeptState(tuple(names), not same, drew)


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Restores the model's tensors, flags and attributes on the way out.

    Raises:
        NotFoldableError: of check `copy`, if there was something to restore, so that the copy that was run is none.
    """
    before = snapshot(model)
    held = [(vars(module), dict(vars(module))) for module in model.modules()]
    held += [(own[group], dict(own[group])) for own, _ in held for group in ("_parameters", "_buffers") if group in own]
    tensors_now = [tensor for tensor in (*model.parameters(), *model.buffers()) if _comparable(tensor)]
    values = [tensor.detach().clone() for tensor in tensors_now]
    error = None
    touched: list[str] = []
    try:
        yield
    except NotFoldableError as found:
        error = found
    finally:
        touched = changes(before, snapshot(model))
        if touched:
            for now, saved in held:
                for name in now.keys() - saved.keys():
                    del now[name]
                now.update(saved)
            with torch.no_grad():
                for tensor, value in zip(tensors_now, values, strict=True):
                    if not same_bits(tensor, value):
                        tensor.copy_(value)
    if touched:
        raise NotFoldableError(
            f"the copy still calls the original: running a copy of the model changed {joined(touched)} in yours (now "
            "restored); a function or hook that the model holds refers to the model itself, pass the module instead",
            check="copy",
        ) from error
    if error is not None:
        raise error


def snapshot(model: nn.Module, *, held: bool = False) -> dict[str, Any]:
    """Returns all parameters, buffers and plain attributes (tensors, numbers, strings, also in lists and dicts).

    With `held` also the attributes of plain objects that modules hold.
    """
    found: dict[str, Any] = {}
    seen: dict[int, Any] = {}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        own = {**vars(module), "_modules": None}  # submodules are visited themselves
        for group in ("_parameters", "_buffers"):
            own.update(own.pop(group, {}))
        for name, value in own.items():
            if held:
                for place, leaf in held_values(f"{prefix}{name}", value, seen):
                    found.setdefault(place, []).append(_frozen(leaf))
            else:
                found[f"{prefix}{name}"] = [_frozen(leaf) for leaf in torch.utils._pytree.tree_leaves(value)]
    return found


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Returns the names under which two snapshots differ."""
    missing = object()
    names = dict.fromkeys([*before, *after])
    return [f"`{name}`" for name in names if not same_bits(before.get(name, missing), after.get(name, missing))]


def _frozen(leaf: Any) -> Any:
    if isinstance(leaf, Tensor) and _comparable(leaf):
        return leaf.detach().clone()
    if isinstance(leaf, np.ndarray) and not leaf.dtype.hasobject:
        return str(leaf.dtype), leaf.shape, leaf.tobytes()
    # A repr, because NaN differs from NaN; of any other object only the type is known to stay.
    return repr(leaf) if isinstance(leaf, _PLAIN) else type(leaf).__name__


def _comparable(tensor: Tensor) -> bool:
    known = not is_lazy(tensor) and tensor.layout is torch.strided
    return bool(known and not tensor.is_quantized and tensor.device.type != "meta")


def _other(batch: Batch, factor: float) -> Batch:
    drawn = tensors(noise_like(batch, torch.Generator().manual_seed(0)))
    return with_tensors(batch, [value * factor if value.is_floating_point() else value for value in drawn])


def held_values(name: str, value: Any, seen: dict[int, Any]) -> Iterator[tuple[str, Any]]:
    """Yields what is in an attribute, as names and leaves: of lists, dicts and, attribute by attribute, plain objects.

    Objects in `seen`, by id, are not visited again.
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
        if name in after and not same_bits(_hashable(state), _hashable(after[name][1]))
    }


def _hashable(state: Any) -> Any:
    """NumPy's states hold arrays, which have no single truth."""
    if isinstance(state, Tensor):
        return state
    leaves = torch.utils._pytree.tree_leaves(state)
    return repr([leaf.tobytes() if hasattr(leaf, "tobytes") else leaf for leaf in leaves])


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
