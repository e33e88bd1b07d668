"""Finds the module in which two runs of a model part: noise from a generator that torch does not own."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from jumpout_export.model.randomness import RandomCall, rng_restored, tensor_bytes


def first_difference(
    model: nn.Module, run: Callable[[], Any], operator: str, *, private: bool = False
) -> RandomCall | None:
    """Returns the innermost module whose result differs between two runs although its inputs agree, or None.

    Hooks and generator states are as before afterwards. `operator` is what to call the noise. With `private` NumPy's
    and Python's global generators start both runs alike too, so that the noise comes from another.
    """
    with rng_restored(), torch.no_grad():
        # Both runs get the same torch noise, so that only what torch does not own can differ.
        state = torch.get_rng_state()
        with rng_restored() if private else contextlib.nullcontext():
            first = _trace(model, run)
        torch.set_rng_state(state)
        second = _trace(model, run)
    running: list[str] = []
    for (path, before), (_, after) in zip(first, second, strict=False):
        # An entry that differs: the noise was drawn in the module that was running. An exit that differs: in `path`.
        if before != after:
            place = running[-1] if running else ""
            return RandomCall(operator, place, *_source(model.get_submodule(place)))
        if running and running[-1] == path and before.startswith("exit"):
            running.pop()
        else:
            running.append(path)
    return None


def _trace(model: nn.Module, run: Callable[[], Any]) -> list[tuple[str, str]]:
    """The entries and exits of all modules in call order, each with a digest of the tensors that passed."""
    events: list[tuple[str, str]] = []
    handles = []
    try:
        for path, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(_record(events, path, "entry"), with_kwargs=True))
            handles.append(module.register_forward_hook(_record(events, path, "exit")))
        run()
    finally:
        for handle in handles:
            handle.remove()
    return events


def _record(events: list[tuple[str, str]], path: str, kind: str) -> Callable[..., None]:
    """A hook that notes the tensors on the way in (args, kwargs) or out (args, output)."""

    def hook(_: nn.Module, args: Any, last: Any) -> None:
        events.append((path, f"{kind} {_digest((args, last) if kind == 'entry' else last)}"))

    return hook


def _digest(value: Any) -> str:
    digest = hashlib.sha256()
    for leaf in torch.utils._pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            digest.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
            digest.update(tensor_bytes(leaf.cpu()).numpy().tobytes())
    return digest.hexdigest()


def _source(module: nn.Module) -> tuple[str, int]:
    """File and line of the module's forward, the closest that can be known for a generator torch does not own."""
    try:
        return inspect.getsourcefile(type(module).forward) or "", inspect.getsourcelines(type(module).forward)[1]
    except (OSError, TypeError):
        return "", 0
