"""The constants that a saved ONNX file computes with: initializers, Constant nodes, subgraphs, functions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from jumpout_export.onnxfile.computed import Read, Reads, Source
from jumpout_export.onnxfile.constants import Array

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

# Which inputs of an operator are sizes, axes or places of the data, and no values of it.
_SIZES = {
    "Reshape": (1,),
    "Expand": (1,),
    "Unsqueeze": (1,),
    "Squeeze": (1,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Pad": (1, 3),
    "Tile": (1,),
    "Resize": (1, 2, 3),
    "Upsample": (1,),
    "ConstantOfShape": (0,),
    "TopK": (1,),
    "CumSum": (1,),
    "CenterCropPad": (1,),
    "ReduceSum": (1,),
    "ReduceMean": (1,),
    "ReduceMax": (1,),
    "ReduceMin": (1,),
    "ReduceProd": (1,),
    "ReduceL1": (1,),
    "ReduceL2": (1,),
    "ReduceLogSum": (1,),
    "ReduceLogSumExp": (1,),
    "ReduceSumSquare": (1,),
}


class Constant:
    """One constant of a file as data meet it, read where its values are needed.

    Attributes:
        name: by which it is read; of what the node makes that holds it.
        dims: its shape.
        size: number of elements.
        is_shape: whether nothing reads it but for sizes, axes and places.
        is_known: whether its values can be told; not of what an operator makes of constants that is not followed.
    """

    def __init__(
        self, tensor: TensorProto | None, folder: str, name: str = "", *, made: Array | None = None,
        is_shape: bool = False,
    ) -> None:  # fmt: skip
        self.name = name or (tensor.name if tensor is not None else "") or "a constant"
        self.dims = tuple(tensor.dims) if tensor is not None else made.shape if made is not None else ()
        self.size = math.prod(self.dims)
        self.is_shape = is_shape
        self.is_known = tensor is not None or made is not None
        self._tensor, self._folder, self._made = tensor, folder, made

    def values(self) -> Array:
        """All values, flat; numbers that NumPy has no type for in float32."""
        from onnx import numpy_helper

        array = numpy_helper.to_array(self._tensor, self._folder) if self._tensor is not None else self._made
        assert array is not None, "its values are not known"
        array = array.reshape(-1)
        return array if array.dtype.kind in "fiub" else array.astype(np.float32)


def constants_in(file: Reads, folder: str) -> list[Constant]:
    """Returns the constants of numbers that the outputs of a file depend on, at any depth, except for empty ones.

    What nodes make of constants alone is one, and what they make it of is none, where nothing else reads that.

    Args:
        file: where it reads them.
        folder: that external data lies in.
    """
    reads: dict[Source, list[Read]] = {}
    for read in file.reads:
        reads.setdefault(read.source, []).append(read)
    found = []
    for source, its in reads.items():
        made = file.values(source) if source.tensor is None else None
        if not _is_of_numbers(source.tensor, made):
            continue
        is_shape = all(read.node is not None and is_size(read.node, read.place) for read in its)
        constant = Constant(source.tensor, folder, source.name, made=made, is_shape=is_shape)
        if constant.size:
            found.append(constant)
    return found


def _is_of_numbers(tensor: TensorProto | None, made: Array | None) -> bool:
    from onnx import TensorProto

    if tensor is not None:
        others = (TensorProto.UNDEFINED, TensorProto.STRING, TensorProto.COMPLEX64, TensorProto.COMPLEX128)
        return tensor.data_type not in others
    return made is None or made.dtype.kind not in "OSUc"


def is_size(node: NodeProto, place: int) -> bool:
    """Returns whether an input of a node, by its number, is sizes, axes or places of the data, and no values of it."""
    return place in _SIZES.get(node.op_type, ())
