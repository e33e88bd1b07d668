"""Why a file cannot be the model, where the reason is known and lies in the model: looked for once values differ."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from jumpout_export.model.batches import Batch
from jumpout_export.model.run import run
from jumpout_export.model.signature import input_names, only_tensors, outputs, tensors, with_tensors
from jumpout_export.report import Check, counted
from jumpout_export.tolerances import rounding_share


def known_reasons(original: nn.Module, batch: Batch) -> list[Check]:
    """Returns a failed check for each known reason that an eval model differs from what a converter makes of it.

    A copy of the model is run once.
    """
    model = copy.deepcopy(original)
    padded: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, nn.TransformerEncoder) and getattr(module, "use_nested_tensor", False):
            module.register_forward_pre_hook(_takes_padding(path, padded), with_kwargs=True)
    try:
        result = run(model, batch)
        names = [output.name for output in outputs(result, input_names(model, batch))]
    except Exception:  # the user's forward may raise anything; that is reported where it was run before
        return []
    found = []
    if padded:
        hint = "leaves zeros at padded positions by way of nested tensors, which a file has not"
        cure = "build it with nn.TransformerEncoder(..., enable_nested_tensor=False)"
        found.append(counted("nested tensors", [f"`{path or '.'}` {hint}: {cure}" for path in dict.fromkeys(padded)]))
    if problem := about_complex(names, only_tensors(result)):
        found.append(counted("complex outputs", [problem]))
    elif problem := _time_first(model, batch, only_tensors(result)):
        found.append(counted("batch axis", [problem]))
    return found


def about_complex(names: Sequence[str], result: object) -> str:
    """Returns what is to be done about complex outputs, which an ONNX file cannot have; empty if there are none."""
    leaves = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
    found = [
        f"output `{name}` is {str(leaf.dtype).removeprefix('torch.')}"
        for name, leaf in zip(names, leaves, strict=False)
        if leaf.is_complex()
    ]
    return f"{', '.join(found)}, and ONNX files have no complex outputs: return torch.view_as_real(y)" if found else ""


def _time_first(model: nn.Module, batch: Batch, result: object) -> str:
    """Returns how to open the batch of a model that has it behind the time, as torch's recurrent layers do; or empty.

    What one part of the inputs gives alone tells: along the second axis what it gives among the others, along the
    first something else.
    """
    values = tensors(batch)
    if not all(value.ndim > 1 for value in values) or len({value.shape[1] for value in values}) != 1:
        return ""
    if not _independent(model, batch, result, 1) or _independent(model, batch, result, 0):
        return ""
    names = input_names(model, batch)
    options = " ".join(f"--dynamic {name}:1=n" for name in names)
    opened = {name: {1: "n"} for name in names}
    return (
        "the second axis of the inputs is the batch, their first is not (what lies along it depends on each other); "
        f"open it with dynamic_batch=False, dynamic_axes={opened} (--static {options})"
    )


def _independent(model: nn.Module, batch: Batch, result: object, axis: int) -> bool:
    """Whether the last half of the inputs along an axis gives alone what it gives among the others.

    The last, because what comes first in time often does not depend on what follows.
    """
    size = tensors(batch)[0].shape[axis]
    half = with_tensors(batch, [value.narrow(axis, size - size // 2, size // 2) for value in tensors(batch)])
    try:
        alone = [leaf for leaf in pytree.tree_leaves(only_tensors(run(model, half))) if isinstance(leaf, Tensor)]
    except Exception:  # the user's forward may raise anything; that it does is the answer
        return False
    whole = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
    return size > 1 and len(alone) == len(whole) and all(map(functools.partial(_is_part, size=size), alone, whole))


def _is_part(alone: Tensor, whole: Tensor, *, size: int) -> bool:
    """Whether a tensor is the last half of another along some axis, to rounding."""
    places = [axis for axis, length in enumerate(whole.shape) if length == size] if alone.ndim == whole.ndim else []
    parts = [whole.narrow(axis, size - size // 2, size // 2) for axis in places]
    limit = rounding_share(whole.dtype) * float(whole.abs().max()) if whole.numel() else 0.0
    return math.isfinite(limit) and any(
        part.shape == alone.shape and torch.allclose(part, alone, rtol=0.0, atol=limit) for part in parts
    )


def _takes_padding(path: str, found: list[str]) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("src_key_padding_mask", args[2] if len(args) > 2 else None)
        if isinstance(mask, Tensor) and bool((mask != 0).any()):  # true, or minus infinity, where there is padding
            found.append(path)

    return hook
