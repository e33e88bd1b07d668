"""Why a file cannot be the model, where the reason is known and lies in the model: looked for once values differ."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from jumpout_export.model.batches import Batch
from jumpout_export.model.run import run
from jumpout_export.model.signature import input_names, only_tensors, outputs
from jumpout_export.report import Check, counted


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


def _takes_padding(path: str, found: list[str]) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("src_key_padding_mask", args[2] if len(args) > 2 else None)
        if isinstance(mask, Tensor) and bool((mask != 0).any()):  # true, or minus infinity, where there is padding
            found.append(path)

    return hook
