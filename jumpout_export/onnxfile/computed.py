"""What an ONNX file computes with before any input comes in: its constants, where data and sizes meet them.

A node that reads nothing but constants makes a constant. What data meet is what such nodes make in the end, a table
that was cut and padded, and not the table that they began with: so that is what counts.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from jumpout_export.onnxfile.load import inlined
from jumpout_export.onnxfile.reference import Array, Runner
from jumpout_export.onnxfile.training import RANDOM_OPERATORS
from jumpout_export.onnxfile.walk import DEFAULT_DOMAINS, default_opset, graphs_of, messages

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

# Elements of one value that is worked out, work and nodes of all together: some seconds, and a GiB of float32.
_MOST_ELEMENTS, _MOST_STEPS, _MOST_NODES = 1 << 27, 1 << 16, 10_000
_MEASURING = frozenset({"Shape", "Size"})
_FLOATS = (1, 10, 11, 16)


@dataclass(eq=False)
class Source:
    """A constant of a file: a tensor, or what a node makes of constants.

    Attributes:
        name: by which it is read; of what the node makes that holds it.
        tensor: None for what a node makes.
        node: that makes it, None for a tensor.
        inputs: of that node; None for one that is left out.
        index: which output of the node it is.
        is_table: whether it is floating point and no single number, or made of one that is.
    """

    name: str
    tensor: TensorProto | None = None
    node: NodeProto | None = None
    inputs: tuple[Source | None, ...] = ()
    index: int = 0
    is_table: bool = field(init=False)

    def __post_init__(self) -> None:
        """Asks what it is made of, which was asked before: the chain may be long."""
        self.is_table = any(one.is_table for one in self.inputs if one is not None)
        if self.tensor is not None:
            self.is_table = self.tensor.data_type in _FLOATS and math.prod(self.tensor.dims) > 1


@dataclass(frozen=True)
class Read:
    """A place where something that is no constant reads one.

    Attributes:
        source: the constant.
        node: that reads it; None where a graph returns it.
        place: number of the node's input; -1 where the node holds the constant itself.
        by_data: whether an input's values, or what sizes make of a table, reach the node, and not sizes alone.
    """

    source: Source
    node: NodeProto | None
    place: int
    by_data: bool


class Reads:
    """Where a file reads its constants, at any depth, in the order of its nodes.

    Attributes:
        model: functions inlined.
        opset: of ONNX's own operators.
        values: what the constants come to.
        reads: of constants.
        reached: the nodes that an input's values reach, and not sizes alone.
        main: the names of the main graph: its constants, and of what is none whether an input's values reach it.
    """

    def __init__(self, model: ModelProto, folder: str) -> None:
        """Takes a protobuf without external data, which is not changed, and the folder that such data lies in."""
        self.model = model = inlined(model)
        self.opset = default_opset(model)
        self.values = Values(self.opset, folder)
        self.reads: list[Read] = []
        self.reached: list[NodeProto] = []
        self.main: ChainMap[str, Source | bool] = ChainMap()
        self._needed = _needed(model)
        self._cut: set[str] = set()  # what sizes make of tables
        self._graph(model.graph, self.main, main=True)

    def _graph(self, graph: GraphProto, scope: ChainMap[str, Source | bool], main: bool = False) -> None:
        """Follows a graph; in `scope`, what is no constant is whether an input's values reach it."""
        scope.update(dict.fromkeys((value.name for value in graph.input), True))
        # An input with an initializer may be given another value; what it has otherwise is what the file computes with.
        scope.update((tensor.name, Source(tensor.name, tensor)) for tensor in graph.initializer)
        for sparse in graph.sparse_initializer:
            scope[sparse.values.name] = Source(sparse.values.name, sparse.values)
        for node in graph.node:
            if not main or self._needed.intersection(node.output):
                self._node(node, scope)
        for value in graph.output:
            self._read(scope.get(value.name, True), None, 0, True)

    def _node(self, node: NodeProto, scope: ChainMap[str, Source | bool]) -> None:
        given = [scope.get(name, True) if name else None for name in node.input]
        if node.op_type == "CastLike" and any(isinstance(one, bool) for one in given):
            given = given[:1]  # of what it is like, it reads the type alone
        subgraphs = [graph for _, graph in graphs_of(node)]
        name = next(iter(node.output), "")
        if node.op_type == "Constant" and node.domain in DEFAULT_DOMAINS:
            scope[name] = next((Source(name, tensor) for tensor in _held(node, name)), False)
            return
        constants = tuple(one for one in given if not isinstance(one, bool))
        if (
            len(constants) == len(given) == len(node.input) > constants.count(None)
            and not subgraphs
            and not _is_random(node)
        ):
            for index, output in enumerate(node.output):
                scope[output] = Source(output, None, node, constants, index)
            return
        no_input = all(one is None for one in given)
        by_data = _is_random(node) or bool(subgraphs) or no_input or any(one is True for one in given)
        reached = by_data and node.op_type not in _MEASURING
        cut = not reached and any(name in self._cut for name in node.input)
        if not reached and (cut or any(isinstance(one, Source) and one.is_table for one in given)):
            self._cut.update(node.output)
        self.reached += [node] * (reached or cut)
        for place, one in enumerate(given):
            self._read(one, node, place, reached or cut)
        for tensor in _held(node, name):
            self.reads.append(Read(Source(name, tensor), node, -1, reached or cut))
        for graph in subgraphs:
            self._graph(graph, scope.new_child())
        scope.update(dict.fromkeys(node.output, reached))

    def _read(self, one: Source | bool | None, node: NodeProto | None, place: int, by_data: bool) -> None:
        if isinstance(one, Source):
            self.reads.append(Read(one, node, place, by_data))


class Values:
    """Works out what constants come to.

    Args:
        opset: of ONNX's own operators.
        folder: that external data lies in.
    """

    def __init__(self, opset: int, folder: str) -> None:
        self._folder = folder
        self._run = Runner(opset, _MOST_ELEMENTS)
        self._made: dict[Source, Any] = {}  # arrays, lists of them, and None for what is not known

    def __call__(self, source: Source) -> Array | None:
        """Returns the values of a constant, None where they cannot be told here."""
        for one in self._in_order(source):
            self._made[one] = self._worked_out(one)
        made = self._known(source)
        return None if isinstance(made, list) else made

    def _in_order(self, source: Source) -> list[Source]:
        """What nodes make on the way to a constant and was not worked out yet, each after what it is made of."""
        found: dict[Source, None] = {}
        left = [(source, False)]
        while left:
            one, is_ready = left.pop()
            if is_ready:
                found[one] = None
            elif one.node is not None and one not in found and one not in self._made:
                left.append((one, True))
                left += [(before, False) for before in one.inputs if before is not None]
        return list(found)

    def _known(self, source: Source) -> Any:
        from onnx import numpy_helper

        if source.tensor is not None:
            return numpy_helper.to_array(source.tensor, self._folder)
        return self._made.get(source)

    def _worked_out(self, source: Source) -> Any:
        node = source.node
        if node is None or node.domain not in DEFAULT_DOMAINS:
            return None
        if self._run.steps > _MOST_STEPS or len(self._made) > _MOST_NODES:
            return None
        try:
            given = [None if one is None else self._known(one) for one in source.inputs]
            if any(array is None and one is not None for array, one in zip(given, source.inputs, strict=True)):
                return None
            made = self._run(node, given)[source.index]
            return made if isinstance(made, list) else np.asarray(made)
        except Exception:  # whatever numpy or onnx say of a broken node or tensor, or of what is too much work
            return None


def _is_random(node: NodeProto) -> bool:
    return node.op_type in RANDOM_OPERATORS


def _held(node: NodeProto, name: str) -> Iterator[TensorProto]:
    """The tensors, and of a Constant the numbers, in a node's attributes."""
    from onnx import numpy_helper

    for attribute in node.attribute:
        yield from _tensors(attribute)
        if node.op_type == "Constant" and attribute.name in _NUMBERS:
            field, dtype = _NUMBERS[attribute.name]
            yield numpy_helper.from_array(np.array(getattr(attribute, field), dtype), name)


_NUMBERS = {
    "value_float": ("f", np.float32),
    "value_floats": ("floats", np.float32),
    "value_int": ("i", np.int64),
    "value_ints": ("ints", np.int64),
}


def _tensors(attribute: AttributeProto) -> Iterator[TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    if attribute.HasField("sparse_tensor"):
        yield attribute.sparse_tensor.values
    yield from attribute.tensors
    yield from (tensor.values for tensor in attribute.sparse_tensors)


def _needed(model: ModelProto) -> set[str]:
    """The names that the outputs depend on; in a subgraph of a node that is needed, every one."""
    makers = {name: node for node in model.graph.node for name in node.output}
    needed: set[str] = set()
    left = [value.name for value in model.graph.output]
    while left:
        name = left.pop()
        if name in needed:
            continue
        needed.add(name)
        if name in makers:
            left += makers[name].input
            for message in messages(makers[name]):
                if message is not makers[name] and message.DESCRIPTOR.name == "NodeProto":
                    left += [*message.input, *message.output]
                elif message.DESCRIPTOR.name == "GraphProto":
                    left += [value.name for value in message.output]
    return needed
