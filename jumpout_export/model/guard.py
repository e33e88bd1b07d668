"""Keeps the user's model as it was found: flags, parameters, buffers, submodules, hooks and attributes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from jumpout_export.errors import NotFoldableError
from jumpout_export.model.held import GROUPS, PLAIN, comparable, held_modules, held_tensors
from jumpout_export.model.randomness import same_bits
from jumpout_export.text import joined

_MISSING = object()


class Found:
    """A model as it was found: all modules that can be reached from it, their attributes, and copies of all tensors.

    Args:
        model: nothing of it is changed before `restore`.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = held_modules(model)
        self._attributes = [_Attributes(f"{path}." if path else "", vars(one)) for path, one in modules.items()]
        tensors = {id(tensor): (name, tensor) for name, tensor in held_tensors(modules) if comparable(tensor)}
        self._tensors = [_Values(name, tensor) for name, tensor in tensors.values()]

    def restore(self) -> list[str]:
        """Puts everything back, and returns the names of what was not as it was found."""
        tensors = [values.name for values in self._tensors if values.restore()]
        attributes = [name for own in self._attributes for name in own.restore()]
        return [f"`{name}`" for name in dict.fromkeys([*tensors, *attributes])]


@contextlib.contextmanager
def put_back(model: nn.Module) -> Iterator[None]:
    """Puts a model that is run itself back to how it was found on the way out: a forward may count, or write weights.

    Not one whose weights torch spreads over processes (FSDP): it moves them itself.
    """
    names = {cls.__name__ for module in model.modules() for cls in type(module).__mro__}
    found = None if names & {"FSDPModule", "FullyShardedDataParallel"} else Found(model)
    try:
        yield
    finally:
        if found is not None:
            found.restore()


@contextlib.contextmanager
def untouched(found: Found) -> Iterator[None]:
    """Puts a model back to how it was found on the way out.

    Raises:
        NotFoldableError: of check `copy`, if there was something to put back, so that the copy that was run is none.
    """
    error = None
    touched: list[str] = []
    try:
        yield
    except NotFoldableError as other:
        error = other
    finally:
        touched = found.restore()
    if touched:
        raise NotFoldableError(
            f"the copy still calls the original: running a copy of the model changed {joined(touched)} in yours (now "
            "restored); a function or hook that the model holds refers to the model itself, pass the module instead",
            check="copy",
        ) from error
    if error is not None:
        raise error


class _Attributes:
    """The attributes of one module, and what is in the lists, dicts and sets among them."""

    def __init__(self, prefix: str, own: dict[str, Any]) -> None:
        self._prefix, self._own, self._saved = prefix, own, dict(own)
        self._contents = [
            (name, inner, _content(inner)) for name, value in own.items() for inner in _containers(value, set())
        ]

    def restore(self) -> Iterator[str]:
        """Puts them back, and yields the names of those that were others."""
        for name in self._own.keys() - self._saved.keys():
            del self._own[name]
            yield f"{self._prefix}{name}"
        for name, value in self._saved.items():
            if not _is_same(self._own.get(name, _MISSING), value):
                yield f"{self._prefix}{name}"
            self._own[name] = value
        for name, inner, saved in self._contents:
            now = _content(inner)
            if len(now) == len(saved) and all(map(_is_same, _flat(now), _flat(saved))):
                continue
            inner.clear()
            if isinstance(inner, list):
                inner.extend(saved)
            else:
                inner.update(saved)
            if name in GROUPS:  # what is in them is named like an attribute
                others = [key for key in {**now, **saved} if now.get(key, _MISSING) is not saved.get(key, _MISSING)]
                yield from (f"{self._prefix}{key}" for key in others)
            else:
                yield f"{self._prefix}{name}"


class _Values:
    """The values of one tensor, and where they lie."""

    def __init__(self, name: str, tensor: Tensor) -> None:
        self.name = name
        self._tensor, self._place, self._needs_grad = tensor, tensor.detach(), tensor.requires_grad
        self._bytes = self._place.untyped_storage().nbytes()
        self._saved = self._place.clone()

    def restore(self) -> bool:
        """Puts them back, and returns whether they were others."""
        tensor, place = self._tensor, self._place
        same = comparable(tensor) and tensor.requires_grad == self._needs_grad and same_bits(tensor, self._saved)
        if same and _lies_at(tensor, place):
            return False
        with torch.no_grad(), torch.inference_mode(place.is_inference()):
            if place.untyped_storage().nbytes() != self._bytes:
                place.untyped_storage().resize_(self._bytes)
            if not _lies_at(tensor, place):  # for example cast by `double()`
                tensor.data = place
            if not same_bits(place, self._saved):
                place.copy_(self._saved)
        if tensor.requires_grad != self._needs_grad:
            tensor.requires_grad_(self._needs_grad)
        return not same


def _lies_at(tensor: Tensor, place: Tensor) -> bool:
    return (
        tensor.dtype == place.dtype
        and tensor.device == place.device
        and tensor.shape == place.shape
        and tensor.stride() == place.stride()
        and tensor.data_ptr() == place.data_ptr()
    )


def _containers(value: Any, seen: set[int]) -> Iterator[Any]:
    """The list, dict or set that an attribute is, and those in it."""
    if not isinstance(value, dict | list | set) or id(value) in seen:
        return
    seen.add(id(value))
    yield value
    for inner in value.values() if isinstance(value, dict) else value:
        yield from _containers(inner, seen)


def _content(container: Any) -> Any:
    return dict(container) if isinstance(container, dict) else list(container)


def _flat(content: Any) -> list[Any]:
    return [*content.keys(), *content.values()] if isinstance(content, dict) else content


def _is_same(now: Any, saved: Any) -> bool:
    """Whether it is the same object, or another of the same value that cannot change; NaN is NaN."""
    return now is saved or (isinstance(saved, PLAIN) and type(now) is type(saved) and repr(now) == repr(saved))
