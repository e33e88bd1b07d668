"""What a model holds and returns: modules, also those outside of its tree, and values in objects of any kind."""

from __future__ import annotations

import contextlib
import functools
import itertools
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from jumpout_export.model.batches import fields_of
from jumpout_export.model.randomness import is_generator, same_bits

# Of objects in objects; and of values per module, so that a large table that a module holds costs little.
_DEPTH = 4
_DEPTH_RETURNED = 8
_MOST = 10_000
# Of no interest, or with a cache that any call may fill.
_SKIPPED = (nn.Module, Tensor, type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType)
_FOREIGN = ("torch", "logging", "threading", "multiprocessing", "concurrent", "weakref", "functools", "_thread")
# Values that never change in place.
PLAIN = (bool, int, float, complex, str, bytes, type(None), np.generic)
# The attributes in which nn.Module keeps what `named_modules`, `named_parameters` and `named_buffers` give.
GROUPS = ("_modules", "_parameters", "_buffers")


def held_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Returns every module of a model by a path, each once.

    Those of its tree come first; then those in attributes that are no submodules (lists, dicts, plain objects), and
    those that functions such as hooks refer to.
    """
    found = dict(model.named_modules())
    known = {id(module) for module in found.values()}
    seen: dict[int, Any] = {}
    left = list(found.items())
    while left:
        path, module = left.pop()
        for name, value in vars(module).items():
            place = f"{path}.{name}" if path else name
            for where, leaf in () if name in GROUPS else held_values(place, value, seen):
                for inner in _modules_in(leaf):
                    names = itertools.chain([where], (f"{where}.{number}" for number in itertools.count(1)))
                    free = next(name for name in names if name not in found)  # those of one list have one name
                    new = [(sub, one) for sub, one in inner.named_modules(prefix=free) if id(one) not in known]
                    known |= {id(one) for _, one in new}
                    found |= dict(new)
                    left += new
    return found


def held_tensors(modules: dict[str, nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of `held_modules` by name: parameters, buffers, and those in attributes, also NumPy's."""
    seen: dict[int, Any] = {}
    for path, module in modules.items():
        prefix = f"{path}." if path else ""
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            yield f"{prefix}{name}", tensor
        for name, value in vars(module).items():
            for place, leaf in () if name in GROUPS else held_values(f"{prefix}{name}", value, seen):
                if isinstance(leaf, Tensor):
                    yield place, leaf
                elif isinstance(leaf, np.ndarray) and leaf.flags.writeable:
                    with contextlib.suppress(TypeError, ValueError):  # texts and objects, or read backwards
                        yield place, torch.from_numpy(leaf)


def held_values(name: str, value: Any, seen: dict[int, Any]) -> Iterator[tuple[str, Any]]:
    """Yields what is in an attribute, as names and leaves: of lists, dicts and, attribute by attribute, plain objects.

    Objects in `seen`, by id, are not visited again.
    """
    if isinstance(value, PLAIN):
        yield name, value
        return
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


def snapshot(model: nn.Module, *, held: bool = False, parameters: bool = True) -> dict[str, Any]:
    """Returns all parameters, buffers and plain attributes (tensors, numbers, strings, also in lists and dicts).

    With `held` also the attributes of plain objects that modules hold; without `parameters` those are left out.
    """
    found: dict[str, Any] = {}
    seen: dict[int, Any] = {}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        own = {**vars(module), "_modules": None}  # submodules are visited themselves
        for group in ("_parameters", "_buffers"):
            inside = own.pop(group, {})
            own.update(inside if parameters or group == "_buffers" else {})
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


def comparable(tensor: Tensor) -> bool:
    """Whether a tensor has values that can be compared byte by byte, and copied."""
    known = not is_lazy(tensor) and tensor.layout is torch.strided and not is_traceable_wrapper_subclass(tensor)
    return bool(known and not tensor.is_quantized and tensor.device.type != "meta")


def first_tensor(output: Any) -> Tensor:
    """Returns the first tensor in what a model returned, whatever that is; see `comparable_parts`.

    Raises:
        TypeError: if there is none.
    """
    for part in comparable_parts(output)[0]:
        if isinstance(part, Tensor):
            return part
    raise TypeError(f"the model's output must hold a tensor, got {type(output).__name__}")


def comparable_parts(output: Any) -> tuple[list[Any], list[str]]:
    """Returns what can be compared in whatever a model returned, and the classes of what cannot.

    The parts are its tensors and NumPy arrays (as tensors), in order: of tuples, lists, mappings and what has keys like
    one, data classes, and the attributes of any other object, such as a distribution; and the numbers and strings that
    lie in these containers themselves. An object in which none of it is found cannot be compared: that two of them are
    not equal may only say that they are two.
    """
    parts: list[Any] = []
    unknown: list[str] = []
    _look_into(output, parts, unknown, {})
    return parts, list(dict.fromkeys(unknown))


def _frozen(leaf: Any) -> Any:
    if isinstance(leaf, Tensor) and comparable(leaf):
        return leaf.detach().clone()
    if isinstance(leaf, np.ndarray) and not leaf.dtype.hasobject:
        return str(leaf.dtype), leaf.shape, leaf.tobytes()
    # A repr, because NaN differs from NaN; of any other object only the type is known to stay.
    return repr(leaf) if isinstance(leaf, PLAIN) else type(leaf).__name__


def _attributes(value: Any) -> dict[str, Any]:
    """The attributes of a plain object, none of anything else."""
    if is_generator(value) or type(value).__module__.split(".")[0] in _FOREIGN:
        return {}
    return attributes_of(value)


def attributes_of(value: Any) -> dict[str, Any]:
    """Returns the attributes of an object of any class; none of modules, tensors, functions and classes."""
    if isinstance(value, _SKIPPED):
        return {}
    own = getattr(value, "__dict__", None)
    found = dict(own) if isinstance(own, dict) else {}
    for base in type(value).__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                found[name] = getattr(value, name)
    return found


def _modules_in(leaf: Any, depth: int = 0) -> list[nn.Module]:
    """The module that a leaf is, or those that a function refers to."""
    if isinstance(leaf, nn.Module):
        return [leaf]
    captured = torch.utils._pytree.tree_leaves(_captured(leaf)) if depth < _DEPTH else []
    return [module for one in captured for module in _modules_in(one, depth + 1)]


def _captured(function: Any) -> list[Any]:
    """What a function refers to; nothing for anything else."""
    if isinstance(function, types.MethodType):
        return [function.__self__]
    if isinstance(function, functools.partial):
        return [function.func, *function.args, *function.keywords.values()]
    if isinstance(function, types.FunctionType):
        return [*(function.__defaults__ or ()), *map(_contents, function.__closure__ or ())]
    return []


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a function that refers to a name which was not bound yet
        return None


def _look_into(value: Any, parts: list[Any], unknown: list[str], seen: dict[int, Any], depth: int = 0) -> None:
    """`seen` are the objects that were looked into, by id, and kept: objects may hold each other, or everything."""
    if isinstance(value, (Tensor, np.ndarray, *PLAIN)):
        parts += _as_parts(value, unknown)
        return
    if id(value) in seen or depth > _DEPTH_RETURNED or len(seen) > _MOST:
        return
    seen[id(value)] = value
    entries = _entries(value)
    if entries is not None:
        for entry in entries:
            _look_into(entry, parts, unknown, seen, depth + 1)
        return
    # Numbers in attributes may count calls, or say when an object was made.
    within: list[Any] = []
    for entry in attributes_of(value).values():
        if not isinstance(entry, PLAIN):
            _look_into(entry, within, [], seen, depth + 1)
    tensors = [part for part in within if isinstance(part, Tensor)]
    parts += tensors
    if not tensors:
        unknown.append(type(value).__name__)


def _entries(value: Any) -> list[Any] | None:
    """What a container holds; None for anything else."""
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, tuple | list):
        return list(value)
    if (fields := fields_of(value)) is not None:
        return list(fields.values())
    if callable(getattr(value, "keys", None)) and hasattr(value, "__getitem__") and not isinstance(value, type):
        with contextlib.suppress(Exception):  # whatever its own code says; its attributes are left then
            return [value[key] for key in value.keys()]  # noqa: SIM118, it may be no iterator of its keys
    return None


def _as_parts(value: Any, unknown: list[str]) -> list[Any]:
    """The parts that a tensor, array, number or string is, as tensors that have bytes."""
    if isinstance(value, np.ndarray):
        try:
            return [torch.from_numpy(np.array(value, order="C"))]
        except TypeError:
            unknown.append(f"array of {value.dtype}")
            return []
    if not isinstance(value, Tensor):
        return [value]
    if value.is_nested:
        return list(value.unbind())
    if value.is_quantized:
        return [value.dequantize()]
    return [value if value.layout == torch.strided else value.to_dense()]
