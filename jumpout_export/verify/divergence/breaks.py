"""Which node of a file begins to give no number, or loses its digits, on inputs on which PyTorch does not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from jumpout_export.onnxfile.load import inlined, load_onnx
from jumpout_export.onnxfile.walk import constants_of
from jumpout_export.runtime.session import Level
from jumpout_export.verify.divergence.values import file_values

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

# Digits go where a sum is so much smaller than what it is of, and where a logarithm is taken so close to 1.
_CANCELLED = 1e-2
_CURVES = ("Elu", "Selu", "Celu")


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


def first_cancelled(path: Path, provider: str, level: str, inputs: list[Tensor]) -> str:
    """Returns, as a phrase, the first node in which numbers cancel: `1 + x` before a Log, `exp(x) - 1`, an Elu.

    The arguments are those of `first_not_finite`.
    """
    from onnx import TensorProto, numpy_helper

    model = load_onnx(path)
    graph = inlined(model).graph
    values = _values(path, model, provider, level, inputs)
    values |= {value.name: tensor for value, tensor in zip(graph.input, inputs, strict=False)}
    for name, tensor in constants_of(graph).items():
        if tensor is not None and tensor.data_location != TensorProto.EXTERNAL:
            values[name] = torch.from_numpy(numpy_helper.to_array(tensor).copy())
    for node in graph.node:
        read = [values[name] for name in node.input if name in values and values[name].is_floating_point()]
        made = values.get(node.output[0])
        if made is None or not read or not made.is_floating_point():
            continue
        if node.op_type in ("Sub", "Add") and _typical(made) < _CANCELLED * max(map(_typical, read)):
            return f"digits are lost at `{node.output[0]}` ({_named(node)}), where numbers cancel"
        if node.op_type == "Log" and _typical(read[0] - 1) < _CANCELLED:
            return f"digits are lost before `{node.output[0]}` ({_named(node)}): 1 and a small number are added"
        if node.op_type in _CURVES and _typical(made) < _CANCELLED:
            return f"digits are lost at `{node.output[0]}` ({_named(node)})"
    return "no node of the main graph shows where digits are lost"


def _values(path: Path, model: ModelProto, provider: str, level: str, inputs: list[Tensor]) -> dict[str, Tensor]:
    found = file_values(path, model, provider, cast("Level", level), inputs)
    return {one.name: one.tensor for one in found if one.tensor.is_floating_point()}


def _finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value).all())


def _typical(value: Tensor) -> float:
    return float(value.double().abs().median()) if value.numel() else 0.0


def _named(node: NodeProto) -> str:
    return f"{node.op_type} {node.name or node.output[0]}"
