"""The constants of a saved ONNX file as the layers that use them: weights row by row, biases, BatchNormalizations."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jumpout_export.onnxfile.load import inlined
from jumpout_export.onnxfile.walk import constants_of

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

Array = np.ndarray[Any, Any]
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Operators that shift or scale a channel, after which a layer's own bias is not all of the bias.
_AFFINE = ("Add", "Sub", "Mul", "Div", "BatchNormalization")


@dataclass(frozen=True)
class Holder:
    """A node with constants per output channel: a convolution or matrix product, or a BatchNormalization."""

    where: str  # for a person, for example `Conv node_Conv_40`
    kind: str  # `Conv`, `ConvTranspose`, `Linear` or `BatchNormalization`
    # Of a layer `weights`, (output channels, weights per output channel), and `bias`, zeros where there is none, the
    # constant of an Add that follows included; of a BatchNormalization `scale` and `shift` of y = scale * x + shift,
    # both (channels,) in float64.
    parts: dict[str, Array]
    eps: float  # of the precision in which they are stored
    value: str = ""  # name of the value that a layer makes, or that a BatchNormalization reads
    affine_follows: bool = False  # whether a further constant is added to or multiplied with a layer's output
    constants: tuple[Array, ...] = ()  # gamma, beta, mean and variance of a BatchNormalization
    names: tuple[str, ...] = ()  # of the constants of the file that it consists of


class FileConstants:
    """Everything constant in the main graph of a file, local functions inlined.

    Args:
        path: the file; external data is read from its folder.
        model: its protobuf, without external data.
    """

    def __init__(self, path: Path, model: ModelProto) -> None:
        model = inlined(model)
        self._folder = str(path.parent)
        self._nodes: list[NodeProto] = list(model.graph.node)
        self._tensors = {name: tensor for name, tensor in constants_of(model.graph).items() if tensor is not None}
        self._arrays: dict[str, Array | None] = {}
        self._layers: dict[tuple[str, tuple[int, ...]], list[Holder]] = {}
        self._readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self._nodes:
            for name in node.input:
                self._readers[name].append(node)

    @cached_property
    def batchnorms(self) -> list[Holder]:
        """Every BatchNormalization whose parameters are constants."""
        return [found for node in self._nodes if (found := self._batchnorm(node)) is not None]

    def layers(self, kind: str, shape: tuple[int, ...]) -> list[Holder]:
        """Returns the layers of a kind whose weights have a shape, row by row of the output channels.

        No others are read.

        Args:
            kind: as in `Holder`.
            shape: (output channels, weights per output channel).
        """
        if (kind, shape) not in self._layers:
            nodes = [node for node in self._nodes if self._kind(node) == kind and self._may_be(node, shape)]
            found = (layer for node in nodes if (layer := self._layer(node)) is not None)
            self._layers[kind, shape] = [layer for layer in found if layer.parts["weights"].shape == shape]
        return self._layers[kind, shape]

    def _kind(self, node: NodeProto) -> str:
        return ("Linear" if node.op_type in ("Gemm", "MatMul") else node.op_type) if node.op_type in _LAYERS else ""

    def _may_be(self, node: NodeProto, shape: tuple[int, ...]) -> bool:
        tensor = self._tensors.get(node.input[1]) if len(node.input) > 1 else None
        return tensor is not None and math.prod(tensor.dims) == math.prod(shape)

    def array(self, name: str) -> Array | None:
        """Returns a floating-point constant; None for anything else."""
        if name not in self._arrays:
            self._arrays[name] = self._read(self._tensors.get(name))
        return self._arrays[name]

    def arrays(self, size: int) -> Iterator[tuple[str, Array]]:
        """Yields name and values of every floating-point constant of so many elements."""
        for name, tensor in self._tensors.items():
            if math.prod(tensor.dims) == size:
                array = self.array(name)
                if array is not None:
                    yield name, array

    def _read(self, tensor: TensorProto | None) -> Array | None:
        from onnx import TensorProto, numpy_helper

        kinds = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
        if tensor is None or tensor.data_type not in kinds:
            return None
        return numpy_helper.to_array(tensor, self._folder)

    def _layer(self, node: NodeProto) -> Holder | None:
        if node.op_type not in _LAYERS or len(node.input) < 2:
            return None
        weight = self.array(node.input[1])
        if weight is None or weight.ndim < 2 or (node.op_type in ("Gemm", "MatMul") and weight.ndim != 2):
            return None
        set_to = {attribute.name: attribute for attribute in node.attribute}
        rows, kind = weight.reshape(len(weight), -1), node.op_type
        if kind == "ConvTranspose":
            rows = transposed_rows(weight, set_to["group"].i if "group" in set_to else 1)
        elif kind in ("Gemm", "MatMul"):
            rows = weight if "transB" in set_to and set_to["transB"].i else weight.T
            kind = "Linear"
        alpha, beta = (set_to[name].f if name in set_to else 1.0 for name in ("alpha", "beta"))
        bias = np.zeros(len(rows))
        if node.op_type != "MatMul" and len(node.input) > 2 and node.input[2]:
            own = self.array(node.input[2])
            if own is None or own.size not in (1, len(rows)):
                return None
            bias = bias + own.reshape(-1).astype(np.float64) * (beta if node.op_type == "Gemm" else 1.0)
        output, bias, added = self._with_added(node.output[0], bias)
        return Holder(
            where=f"{node.op_type} {node.name or node.output[0]}",
            kind=kind,
            parts={"weights": rows if alpha == 1.0 else rows * alpha, "bias": bias},
            eps=float(np.finfo(weight.dtype).eps),
            value=output,
            affine_follows=any(self._affine(reader, output) for reader in self._readers[output]),
            names=(*node.input[1:], *added),
        )

    def _with_added(self, output: str, bias: Array) -> tuple[str, Array, list[str]]:
        """The value and its bias behind an Add of one constant per channel, where there is one, and that constant."""
        readers = self._readers[output]
        if len(readers) == 1 and readers[0].op_type == "Add":
            name = next((name for name in readers[0].input if name != output), output)
            added = self.array(name)
            if added is not None and added.size in (1, len(bias)):
                return readers[0].output[0], bias + added.reshape(-1).astype(np.float64), [name]
        return output, bias, []

    def _affine(self, node: NodeProto, value: str) -> bool:
        others = [name for name in node.input if name != value]
        return node.op_type in _AFFINE and bool(others) and self.array(others[0]) is not None

    def _batchnorm(self, node: NodeProto) -> Holder | None:
        if node.op_type != "BatchNormalization" or len(node.input) != 5:
            return None
        found = [self.array(name) for name in node.input[1:]]
        constants = tuple(array.astype(np.float64) for array in found if array is not None)
        if len(constants) != 4 or found[0] is None or len({array.shape for array in constants}) != 1:
            return None
        epsilon = next((attribute.f for attribute in node.attribute if attribute.name == "epsilon"), 1e-5)
        gamma, beta, mean, variance = constants
        scale = gamma / np.sqrt(variance + epsilon)
        return Holder(
            where=f"{node.op_type} {node.name or node.output[0]}",
            kind=node.op_type,
            parts={"scale": scale, "shift": beta - mean * scale},
            eps=float(np.finfo(found[0].dtype).eps),
            value=node.input[0],
            constants=constants,
            names=tuple(node.input[1:]),
        )


def transposed_rows(weight: Array, groups: int) -> Array:
    """Returns a transposed convolution's weights, (inputs, outputs / groups, *kernel), row by row of its outputs."""
    inputs, outputs = weight.shape[:2]
    grouped = weight.reshape(groups, inputs // groups, outputs, -1)
    return grouped.transpose(0, 2, 1, 3).reshape(groups * outputs, -1)
