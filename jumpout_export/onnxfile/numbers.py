"""Single numbers of an ONNX file that may decide nothing on the inputs that were tried: bounds, thresholds, epsilons.

A factor shows in every value. A bound shows where a value reaches it, a threshold where one lies beyond, and a narrow
integer where a number is too large for it; so which numbers a file has of these is said by the file alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jumpout_export.onnxfile.computed import Read, Reads, Values
from jumpout_export.onnxfile.reference import COMPARES
from jumpout_export.onnxfile.walk import DEFAULT_DOMAINS

if TYPE_CHECKING:
    from onnx import NodeProto

# Which inputs of an operator are such numbers; where none is named, all. What is added may be a bound of a ReLU.
_BOUNDS = {"Clip": (1, 2), "Min": (), "Max": (), "Mod": (1,), "Where": (1, 2), "Pad": (2,), "OneHot": (2,)}
_BOUNDS |= dict.fromkeys(COMPARES | {"Add", "Sub"}, ())
# Of integers, with which places are worked out.
_OF_INTEGERS = frozenset({"Mul", "Div", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitShift"})
# Attributes that are factors, or say nothing of a file that is run.
_SHOWN = {("Gemm", "alpha"), ("Gemm", "beta"), ("BatchNormalization", "momentum"), ("Dropout", "ratio")}
# Of uint8, int8, uint16 and int16, by their number in ONNX, which a larger number wraps around.
WRAPS = {2: 256, 3: 128, 4: 1 << 16, 5: 1 << 15}
# Of float16 and bfloat16, beyond which not every integer has a number of its own.
_EXACT = {10: 1 << 11, 16: 1 << 8}


@dataclass(frozen=True)
class Number:
    """A number that data meet.

    Attributes:
        value: itself.
        where: the node that reads it, for a person.
        what: what it is there, a phrase.
        is_integer: whether it meets integers.
        is_cast: whether it is the first number that is too large for the type of a Cast.
    """

    value: float
    where: str
    what: str
    is_integer: bool = False
    is_cast: bool = False

    def __str__(self) -> str:
        return f"{self.value:.6g}, {self.what} of {self.where}"


def numbers_in(file: Reads) -> list[Number]:
    """Returns the numbers of a file that may decide nothing on the inputs that were tried."""
    found: dict[Number, None] = {}
    for read in file.reads:
        found |= dict.fromkeys(_bound(read, file.values))
    for node in file.reached:
        found |= dict.fromkeys([*_attributes(node, file.opset), *_casts(node)])
    return list(found)


def _bound(read: Read, values: Values) -> Iterator[Number]:
    node = read.node
    if node is None or not read.by_data or read.place < 0 or node.op_type not in (*_BOUNDS, *_OF_INTEGERS):
        return
    if read.place not in (_BOUNDS.get(node.op_type) or range(len(node.input))):
        return
    array = values(read.source)
    kinds = "iu" if node.op_type in _OF_INTEGERS else "iuf"
    if array is not None and array.size == 1 and array.dtype.kind in kinds:
        yield Number(float(array.reshape(-1)[0]), _named(node), "a number", array.dtype.kind in "iu")


def _attributes(node: NodeProto, opset: int) -> Iterator[Number]:
    from onnx import defs

    if node.domain not in DEFAULT_DOMAINS or not defs.has(node.op_type, opset):
        return
    given = {attribute.name: attribute.f for attribute in node.attribute}
    for name, attribute in defs.get_schema(node.op_type, opset).attributes.items():
        if attribute.type == defs.OpSchema.AttrType.FLOAT and (node.op_type, name) not in _SHOWN:
            yield Number(given.get(name, attribute.default_value.f), _named(node), f"the {name}")


def _casts(node: NodeProto) -> Iterator[Number]:
    to = next((one.i for one in node.attribute if one.name == "to"), 0) if node.op_type == "Cast" else 0
    if to in WRAPS | _EXACT:
        yield Number(float((WRAPS | _EXACT)[to]), _named(node), "too large for the type", is_integer=True, is_cast=True)


def _named(node: NodeProto) -> str:
    return f"{node.op_type} `{node.name or node.output[0]}`"
