"""Why a network was not converted, in one line: what it is, where in the user's source, and what to do."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType

from torch import fx, nn

from jumpout_export.export.offers import offer_batch_axes
from jumpout_export.model.axes import BATCH, Axes, resized
from jumpout_export.model.batches import Batch
from jumpout_export.model.run import run_copy
from jumpout_export.model.signature import tensors
from jumpout_export.model.tracing import is_users_file
from jumpout_export.text import first_line

STATIC_HINT = "pass dynamic_batch=False (--static) to export the example's batch size only"
AXES_OPTION = "dynamic_axes (--dynamic)"
# What torch.export says of an axis that it could not leave open: its size and number, or the name of its order.
_SPECIALIZED = re.compile(r"inferred a static shape of (\d+) for dimension \S+\.shape\[(\d+)\]")
_CONSTANT = re.compile(r"You marked (\w+) as dynamic but your code specialized it to be a constant")
_NO_FUNCTION = re.compile(r"No ONNX function found for <OpOverload\(op='([^']+)'")
_DECISION = re.compile(r"Could not guard on data-dependent expression [^(]+(\([^()]*\))?")
_SOURCE = re.compile(r'File "([^"]+)", line (\d+)')
_LONGEST = 300


def explain(error: Exception, model: nn.Module, batch: Batch, axes: Axes, said: Sequence[str]) -> str:
    """Returns why `torch.onnx.export` failed on a folded model; `said` is what the converter said meanwhile.

    That the model fixes a size is said only where PyTorch itself cannot run another one.
    """
    causes = list(_causes(error))
    root = causes[-1]
    text = " ".join(str(root).split())
    capturing = type(error).__name__ == "TorchExportError"  # else it is no matter of sizes
    fixed = _fixed(text, batch, axes)
    if axes.size is None and (capturing or BATCH in fixed) and (offer := offer_batch_axes(model, batch, axes)):
        return offer
    if fixed:
        return "; ".join(_about_size(model, batch, axes, name) for name in fixed)
    failed = "torch.onnx.export failed with"
    if missing := _NO_FUNCTION.search(text):
        return (
            f"{failed} {type(error).__name__}{_node(causes)}: it has no ONNX operator for `{missing[1]}`; write it in "
            "other operators, or compute it outside of the model"
        )
    what = f"{failed} {type(root).__name__}{_source(causes) or _node(causes)}"
    if decision := _DECISION.search(text):
        return (
            f"{what}: {decision[0].strip()}; Python decides there by the value of a tensor (`if`, `int()`, `.item()`), "
            "which a graph cannot hold: use torch.where or torch.cond"
        )
    log = f" (the converter says: {'; '.join(said[:4])})" if said else ""
    hint = f"; if the open batch size is the reason, {STATIC_HINT}" if axes.size is None and capturing else ""
    return f"{what}: {_short(text)}{log}{hint}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from, the first cause last."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def _fixed(text: str, batch: Batch, axes: Axes) -> list[str]:
    """The names of the open axes whose size torch says was written into what it traced."""
    names = [name for name in _CONSTANT.findall(text) if name in axes.names or name == BATCH]
    for size, axis in _SPECIALIZED.findall(text):
        for value, opened in zip(tensors(batch), axes.opened(), strict=True):
            name = opened.get(int(axis))
            if name is not None and value.shape[int(axis)] == int(size):
                names.append(name)
    return list(dict.fromkeys(names))


def _about_size(model: nn.Module, batch: Batch, axes: Axes, name: str) -> str:
    sizes = {
        entry: value.shape[axis]
        for value, opened in zip(tensors(batch), axes.opened(), strict=True)
        for axis, entry in opened.items()
    }
    own = sizes[name]
    ours, theirs = f"the model fixes the size of `{name}`", f"the converter fixes the size of `{name}`"
    if name == BATCH:
        ours, theirs = "the model fixes its batch size", "the converter fixes its batch size"
    hint = STATIC_HINT if name == BATCH else f"leave `{name}` out of {AXES_OPTION}"
    refused = []
    for size in (own + 1, 2 * own):
        try:
            run_copy(model, resized(batch, axes.opened(), {**sizes, name: size}))
        except Exception as error:  # the user's forward may raise anything; what it says is the reason
            refused.append(f"at {size} PyTorch itself says {type(error).__name__}: {_short(first_line(error))}")
        else:
            return (
                f"{theirs} at {own}, though PyTorch runs the model at {size}: Python code walks over "
                "it or takes it as a number (`for row in x`, `range(len(x))`, `.tolist()`); use tensor operations "
                f"there, or {hint}"
            )
    return f"{ours} at {own} ({refused[0]}); {hint}"


def _source(causes: Sequence[BaseException]) -> str:
    """The innermost line of the user's code that the errors passed through, as a phrase."""
    for cause in reversed(causes):
        lines = [
            (frame.f_code.co_filename, line)
            for frame, line in _frames(cause)
            if is_users_file(frame.f_code.co_filename) and "site-packages" not in frame.f_code.co_filename
        ]
        if lines:
            return f" at {lines[-1][0]}:{lines[-1][1]}"
    return ""


def _node(causes: Sequence[BaseException]) -> str:
    """Where the user's code calls the operation that the converter failed on, as a phrase."""
    nodes = [
        value
        for cause in causes
        for frame, _ in _frames(cause)
        for value in frame.f_locals.values()
        if isinstance(value, fx.Node) and f"%{value.name} " in " ".join(str(one) for one in causes)
    ]
    if not nodes:
        return ""
    stack = list(nodes[-1].meta.get("nn_module_stack", {}).values())
    module = str(stack[-1][0]) if stack else ""
    lines = [entry for entry in _SOURCE.findall(nodes[-1].meta.get("stack_trace") or "") if is_users_file(entry[0])]
    parts = [f"in module `{module}`"] if module else []
    parts += [f"at {lines[-1][0]}:{lines[-1][1]}"] if lines else []
    return f" {' '.join(parts)}" if parts else ""


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    return traceback.walk_tb(error.__traceback__)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"
