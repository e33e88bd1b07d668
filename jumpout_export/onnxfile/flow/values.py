"""The values of an ONNX file, and which of them follow from the sizes of its inputs alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

Array = np.ndarray[Any, Any]
Sizes = Mapping[str, int]
Kind = Literal["constant", "plain", "other", "opaque", "data"]
Dims = tuple[int | str | None, ...]


@dataclass(eq=False)
class Value:
    """One value of a file and what it follows from.

    Attributes:
        kind: `constant`; `plain`, which grows with sizes as a polynomial does, element by element; `other`, which is
            computed from sizes in any other way; `opaque`, which follows from sizes too, but is not computed here;
            `data`, which an element of an input reaches.
        number: in the order in which values are made.
        axes: names of the open axes that it depends on.
        grows: whether its shape depends on sizes.
        varies: whether its entries depend on sizes, and not its shape alone.
        whole: whether it is made of integers alone.
        dims: of sizes that were picked from shapes, one by one: numbers, names of open axes, None for what has to be
            measured.
        shape: of those.
        mixes: of data, the names of the open axes along which several entries were made one.
        may_mix: of data, the names of open axes along which that may be so, as they are joined with others.
        joined: of data, the names of the open axes that an axis without a name may be made of.
        node: that makes it, None for a tensor and an input.
        inputs: of that node; None for one that is left out.
        index: which output of the node it is.
        tensor: of a constant that no node makes.
        name: in the graph, for what is measured; empty in a subgraph.
        where: the node, for a person.
    """

    kind: Kind
    number: int
    axes: frozenset[str] = frozenset()
    grows: bool = False
    varies: bool = False
    whole: bool = False
    dims: Dims | None = None
    shape: tuple[int, ...] = ()
    mixes: frozenset[str] = frozenset()
    may_mix: frozenset[str] = frozenset()
    joined: frozenset[str] = frozenset()
    node: NodeProto | None = None
    inputs: tuple[Value | None, ...] = ()
    index: int = 0
    tensor: TensorProto | None = None
    name: str = ""
    where: str = ""

    def before(self, most: int | None = None, data: bool = False) -> list[Value]:
        """Returns it and what it is computed from, in the order in which that is made; `data` includes data."""
        found: dict[int, Value] = {}
        left = [self]
        while left and (most is None or len(found) < most):
            value = left.pop()
            if value.number in found or (value.kind == "data" and not data):
                continue
            found[value.number] = value
            if value.dims is None or None in value.dims:
                left += [one for one in value.inputs if one is not None]
        return [found[number] for number in sorted(found)]


def bounds(node: NodeProto) -> tuple[int | None, int | None]:
    """Returns which part of a shape a Shape node gives, as a slice."""
    given = {attribute.name: attribute.i for attribute in node.attribute}
    return given.get("start"), given.get("end")
