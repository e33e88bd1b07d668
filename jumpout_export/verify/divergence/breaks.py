"""Which node of a file begins to give no number, or loses its digits, on inputs on which PyTorch does not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from jumpout_export.onnxfile.load import inlined, load_onnx
from jumpout_export.onnxfile.reference import ELEMENTWISE, Array, Runner
from jumpout_export.onnxfile.walk import DEFAULT_DOMAINS, constants_of, default_opset
from jumpout_export.runtime.session import Level
from jumpout_export.tolerances import DIGITS_LOST, DIGITS_LOST_SHARE
from jumpout_export.verify.divergence.values import file_values

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

# So many nodes before one are worked out again with it: a digit is gone where 1 and a small number are added, and is
# missed where the logarithm of that is taken.
_BEFORE = 3
# Of values with more elements nothing is worked out again.
_MOST_ELEMENTS = 1 << 20


def first_not_finite(path: Path, provider: str, level: str, inputs: list[Tensor], usual: list[Tensor]) -> str:
    """Returns, as a phrase, the first node that gives an infinity or NaN for `inputs` and none for `usual` ones.

    Args:
        path: the file.
        provider: `cpu` or `cuda`.
        level: of ONNX Runtime's optimizations.
        inputs: in the graph's order.
        usual: other inputs, on which it computes what it should: what is infinite there belongs there, as in a mask.
    """
    model = load_onnx(path)
    before = _values(path, model, provider, level, usual)
    now = _values(path, model, provider, level, inputs)
    for node in inlined(model).graph.node:
        for name in node.output:
            value, old = now.get(name), before.get(name)
            if value is not None and not _finite(value) and (old is None or _finite(old)):
                return f"it begins at `{name}` ({_named(node)})"
    return "no node of the main graph begins it"


def first_without_digits(path: Path, provider: str, level: str, inputs: list[Tensor]) -> str:
    """Returns, as a phrase, the first node whose digits are lost, as `exp(x) - 1` loses them; empty if none does.

    That is measured: it and the nodes before it are worked out again in float64, from values that the file has.

    The arguments are those of `first_not_finite`.
    """
    from onnx import TensorProto, numpy_helper

    model = load_onnx(path)
    graph = inlined(model).graph
    values = {name: value.numpy() for name, value in _values(path, model, provider, level, inputs).items()}
    values |= {value.name: tensor.numpy() for value, tensor in zip(graph.input, inputs, strict=False)}
    for name, tensor in constants_of(graph).items():
        if tensor is not None and tensor.data_location != TensorProto.EXTERNAL:
            values[name] = numpy_helper.to_array(tensor)
    makers = {node.output[0]: node for node in graph.node if _is_worked_out(node, values)}
    again = _Again(values, makers, default_opset(model))
    for name, node in makers.items():
        have, wanted = values[name].astype(np.float64), again.worked_out(name, _BEFORE)
        if wanted is None or wanted.shape != have.shape or not np.isfinite(wanted).all():
            continue
        lost = np.abs(have - wanted) > DIGITS_LOST * np.abs(wanted)
        if lost.mean() >= DIGITS_LOST_SHARE:
            at = np.unravel_index(np.flatnonzero(lost)[0], lost.shape)
            there = f"{values[name][at]:.6g}, worked out in float64 {wanted[at]:.6g}"
            return f"digits are lost at `{name}` ({_named(node)}): {there}"
    return ""


def _is_worked_out(node: NodeProto, values: Mapping[str, Array]) -> bool:
    if node.op_type not in ELEMENTWISE or node.domain not in DEFAULT_DOMAINS or node.output[0] not in values:
        return False
    arrays = [values.get(name) for name in (*node.input, node.output[0]) if name]
    return all(one is not None and one.dtype.kind == "f" and 0 < one.size <= _MOST_ELEMENTS for one in arrays)


class _Again:
    """Works values out again in float64."""

    def __init__(self, values: Mapping[str, Array], makers: Mapping[str, NodeProto], opset: int) -> None:
        self._values, self._makers, self._run = values, makers, Runner(opset, _MOST_ELEMENTS)

    def worked_out(self, name: str, nodes: int) -> Array | None:
        """A value in float64, from those so many nodes before it; None where a node cannot be worked out."""
        node = self._makers.get(name)
        if node is None or not nodes:
            return self._values[name].astype(np.float64)
        given = [self.worked_out(one, nodes - 1) if one else None for one in node.input]
        if any(array is None and one for array, one in zip(given, node.input, strict=True)):
            return None
        try:
            return np.asarray(self._run(node, given)[0])
        except Exception:  # whatever numpy or onnx say of a node; then nothing is said of it
            return None


def _values(path: Path, model: ModelProto, provider: str, level: str, inputs: list[Tensor]) -> dict[str, Tensor]:
    found = file_values(path, model, provider, cast("Level", level), inputs)
    return {one.name: one.tensor for one in found if one.tensor.is_floating_point()}


def _finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value).all())


def _named(node: NodeProto) -> str:
    return f"{node.op_type} {node.name or node.output[0]}"
