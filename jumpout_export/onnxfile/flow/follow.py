"""Follows what is computed from sizes through a file, to where it meets data or decides something."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jumpout_export.onnxfile.flow.evaluate import Evaluator
from jumpout_export.onnxfile.flow.places import fixed_places, joined_axes, mixes
from jumpout_export.onnxfile.flow.rules import (
    DECIDES,
    ENTERS,
    INTEGERS,
    PICKED,
    REPEATS,
    SHAPED,
    attribute,
    grows_by,
    kind_made,
    kind_of,
    names_of,
    varies_by,
    whole_by,
)
from jumpout_export.onnxfile.flow.values import Dims, Kind, Value, bounds
from jumpout_export.onnxfile.numbers import WRAPS
from jumpout_export.onnxfile.reference import ELEMENTWISE
from jumpout_export.onnxfile.walk import DEFAULT_DOMAINS, graphs_of

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

Scope = ChainMap[str, Value]

# Constants that may be sizes; smaller ones are always tried.
_LEAST, _MOST = 4, 1 << 16
_ENTERS = "makes a size part of the values"
# Of values that meet data; a network has a few dozen.
_MOST_MEETINGS = 300
# Values that are looked through for them, and constants of a list that are taken.
_NEAR, _FEW = 24, 4


@dataclass(frozen=True)
class Meeting:
    """Where sizes meet data, or decide something."""

    where: str  # the node, for a person: where what follows from sizes stops being as regular as they are
    what: str  # what happens to it, for a person
    value: Value | None  # what follows from sizes, and is to be looked at; None where only constants tell
    axes: frozenset[str]  # that it is about
    constants: frozenset[int]  # that it may be compared with
    shapes: bool = False  # whether it says no more than the shape of what the node makes
    enters: bool = False  # whether it becomes part of the values, which may drift away little by little


class Flow:
    """The values of a graph whose functions are inlined, and where sizes meet data.

    Attributes:
        meetings: in the order of the nodes.
        complete: whether these are all.
        together: how many elements lie behind one entry of an open axis where it is joined with others.
    """

    def __init__(self, model: ModelProto, dims: Mapping[str, Dims], batch: str | None, evaluator: Evaluator) -> None:
        """Follows the whole graph.

        Args:
            model: functions inlined.
            dims: shapes of values of the main graph: numbers, names of open axes, None for what is not known.
            batch: the name of the batch's axis, None where its size is fixed.
            evaluator: for constants.
        """
        self.meetings: list[Meeting] = []
        self.complete = True
        self.together = {1}
        self._dims, self._batch, self._evaluator = dims, batch, evaluator
        self._all = frozenset(one for shape in dims.values() for one in shape if isinstance(one, str))
        self._count, self._repeats, self._met = 0, 0, set[int]()
        scope: Scope = ChainMap({value.name: self._new("data", name=value.name) for value in model.graph.input})
        self._graph(model.graph, scope, "", main=True)
        for output in model.graph.output:
            self._meet(f"output `{output.name}`", "is an output", scope.get(output.name))

    def _new(self, kind: Kind, **more: object) -> Value:
        self._count += 1
        return Value(kind, self._count, **more)  # type: ignore[arg-type]

    def _graph(self, graph: GraphProto, scope: Scope, where: str, main: bool = False) -> list[Value]:
        given = {value.name for value in graph.input}
        for tensor in graph.initializer:
            if tensor.name not in given:  # an input with an initializer may be given another value
                scope[tensor.name] = self._new("constant", tensor=tensor, whole=tensor.data_type in INTEGERS)
        for sparse in graph.sparse_initializer:
            scope[sparse.values.name] = self._new("constant")
        for index, node in enumerate(graph.node):
            text = f"{node.name or f'#{index}'} ({node.op_type}){where}"
            inputs = tuple((scope.get(name) or self._new("data")) if name else None for name in node.input)
            made = self._node(node, inputs, scope, text)
            for number, (name, value) in enumerate(zip(node.output, made, strict=True)):
                value.index, value.name = number, name if main else ""
                scope[name] = value
        return [scope.get(value.name) or self._new("data") for value in graph.output]

    def _node(self, node: NodeProto, inputs: tuple[Value | None, ...], scope: Scope, where: str) -> list[Value]:
        given = [one for one in inputs if one is not None]
        if self._repeats:
            self._repeated(where, given)
        if node.op_type == "Constant" and (
            tensor := next((one.t for one in node.attribute if one.name == "value"), None)
        ):
            return [self._new("constant", tensor=tensor, whole=tensor.data_type in INTEGERS)]
        if any(True for _ in graphs_of(node)):
            return self._with_graphs(node, given, scope, where)
        ours = node.domain in DEFAULT_DOMAINS
        axes = frozenset[str]().union(*(one.axes for one in given))
        kind: Kind = kind_made(node, given) if ours else "opaque"
        dims: Dims | None = None
        shape: tuple[int, ...] = ()
        if ours and node.op_type in ("Shape", "Size") and given:
            kind, dims = self._measured(node, given[0])
            axes = given[0].axes if given[0].kind != "data" else names_of(dims, self._all)
            if node.op_type == "Size":
                dims = None
            shape = (len(dims),) if dims is not None else ()
        elif any(one.kind == "data" for one in given) or not (given or node.op_type == "Constant"):
            self._beside_data(node, inputs, where)
            shapes = [self._dims_of([one]) for one in inputs]
            mixed, possible = mixes(node, inputs, shapes, self._batch, self._evaluator)
            joined, others = joined_axes(inputs, shapes, self._dims.get(node.output[0]))
            self.together |= {others}
            more = {"node": node, "inputs": inputs, "axes": axes, "mixes": mixed, "may_mix": possible, "joined": joined}
            return [self._new("data", **more) for _ in node.output]
        elif kind == "opaque":
            kind = "opaque" if axes else "constant"
            for one in given:
                self._meet(where, "is read by what is not followed", one)
        elif inputs and (first := inputs[0]) is not None and first.dims is not None and node.op_type in PICKED:
            index = self._evaluator.moved(node, np.arange(len(first.dims)).reshape(first.shape), [*inputs[1:]])
            if index is not None and len(node.output) == 1:
                dims, shape = tuple(first.dims[i] for i in index.flat), index.shape
                kind, axes = kind_of(dims), names_of(dims, self._all)
        grows = kind != "constant" and grows_by(node, given)
        whole = node.op_type in ("Shape", "Size") or whole_by(node, given, self._evaluator)
        varies = kind != "constant" and varies_by(node, given)
        more = {"node": node, "inputs": inputs, "axes": axes, "grows": grows, "varies": varies, "whole": whole}
        return [self._new(kind, dims=dims, shape=shape, where=where, **more) for _ in node.output]

    def _measured(self, node: NodeProto, source: Value) -> tuple[Kind, Dims | None]:
        """What is known of a shape."""
        if source.kind != "data":
            return ("other" if source.kind == "plain" and source.grows else source.kind), None
        dims = self._dims_of([source])
        if dims is None:
            return "other", None
        start, end = bounds(node)
        dims = dims[start:end]
        return kind_of(dims), dims

    def _meet(self, where: str, what: str, value: Value | None, shapes: bool = False, enters: bool = False) -> None:
        if value is None or value.kind not in ("other", "opaque") or value.number in self._met:
            return
        self._met.add(value.number)
        if len(self._met) > _MOST_MEETINGS:
            self.complete = False
        else:
            first = next((one.where for one in value.before() if one.kind == value.kind and one.where), where)
            what = f"{what} at {where}" if first != where else what
            self.meetings.append(Meeting(first, what, value, value.axes, self._constants([value]), shapes, enters))

    def _may_decide(self, where: str, what: str, axes: frozenset[str], values: Iterable[Value | None]) -> None:
        """What cannot be followed, with the constants around it; nothing if there are none."""
        constants = self._constants([value for value in values if value is not None])
        self.complete &= len(self.meetings) < 2 * _MOST_MEETINGS
        if constants and self.complete:
            self.meetings.append(Meeting(where, what, None, axes or self._all, constants))

    def _constants(self, values: Iterable[Value]) -> frozenset[int]:
        """The numbers in what values are computed from that may be sizes."""
        found: set[int] = set()
        for value in values:
            for one in value.before(_NEAR, data=True):
                array = self._evaluator.constant(one) if one.node is None or one.node.op_type == "Constant" else None
                if array is not None and 0 < array.size <= _FEW and array.dtype.kind in "iuf":
                    numbers = [abs(float(entry)) for entry in array.flat]
                    numbers += [1 / one for one in numbers if 0 < one < 1]  # a mean, or a softmax, is one of so many
                    found |= {round(one) for one in numbers if _LEAST <= one <= _MOST}
                elif one.node is not None and one.node.op_type == "Cast":
                    found |= {WRAPS[to] for to in [attribute(one.node, "to")] if to in WRAPS}
        return frozenset(found)

    def _beside_data(self, node: NodeProto, inputs: tuple[Value | None, ...], where: str) -> None:
        """What meets data at a node."""
        for one in inputs:
            # Positions are part of the values of many networks; not so the place in a batch.
            enters = one is not None and node.op_type in ENTERS and one.varies
            enters = enters and one is not None and (not one.grows or self._batch in one.axes)
            self._meet(where, "meets data", one, node.op_type in SHAPED, enters)
            if enters and one is not None and one.kind == "plain" and one.number not in self._met:
                self._met.add(one.number)
                self.meetings.append(Meeting(where, _ENTERS, None, one.axes, frozenset(), enters=True))
        kinds = {one.kind for one in inputs if one is not None}
        mixed = frozenset[str]().union(*(one.mixes for one in inputs if one is not None))
        sizes = frozenset(name for one in inputs if one is not None and one.kind == "plain" for name in one.axes)
        decides = node.op_type in DECIDES
        # Along other axes every network makes one of several entries, and cuts and weighs what comes of it.
        counted = mixed if node.op_type in ELEMENTWISE else mixed & {self._batch}
        if decides or node.op_type == "Sub":  # the least that a count needs to decide something
            counted = counted.union(*(one.may_mix for one in inputs if one is not None))
        if counted:
            given = (one for one in inputs if one is not None and not one.mixes | one.may_mix)
            self._may_decide(where, "compares what several entries give", counted, given)
        elif decides and "plain" in kinds:
            self._may_decide(where, "compares a size with data", sizes, inputs)
        for axis, places in fixed_places(node, inputs, self._dims_of(inputs), self._evaluator):
            constants = frozenset(place for place in places if _LEAST <= place <= _MOST)
            if constants:
                self.meetings.append(Meeting(where, "reads fixed places", None, frozenset({axis}), constants))

    def _dims_of(self, inputs: Sequence[Value | None]) -> Dims | None:
        """The shape of a node's first input, where it is data of the main graph."""
        first = inputs[0] if inputs else None
        return self._dims.get(first.name) if first is not None and first.kind == "data" and first.name else None

    def _repeated(self, where: str, given: Sequence[Value]) -> None:
        """Inside of what is repeated, every constant may be how often."""
        self._may_decide(where, "is repeated as often as a size says", self._all, (o for o in given if not o.inputs))

    def _with_graphs(self, node: NodeProto, given: list[Value], scope: Scope, where: str) -> list[Value]:
        """What an If, a Loop or the like gives: data, or opaque where no data can have reached it."""
        repeats = node.op_type in REPEATS
        for one in given:
            self._meet(where, "decides" if node.op_type == "If" else "is read", one)
        axes = frozenset[str]().union(*(one.axes for one in given))
        counts = repeats and (bool(axes) or any(one.kind == "data" for one in given))
        kind: Kind = "data" if any(one.kind == "data" for one in given) else "opaque"
        self._repeats += counts
        branches: list[list[Value]] = []
        for name, graph in graphs_of(node):
            inner = scope.new_child({value.name: self._new(kind, axes=axes, grows=True) for value in graph.input})
            made = self._graph(graph, inner, f" in {name} of {where}")
            kind = "data" if any(one.kind == "data" for one in made) else kind
            axes = axes.union(*(one.axes for one in made))
            branches.append(made)
        self._repeats -= counts
        if node.op_type == "If" and len(branches) == 2 and len(given) == 1:
            both = zip(branches[0], branches[1], strict=False)
            return [self._either(node, given[0], one, two, axes, where) for one, two in both]
        kind = kind if kind == "data" or axes else "constant"
        return [self._new(kind, node=node, inputs=tuple(given), axes=axes, grows=True) for _ in node.output]

    def _either(
        self, node: NodeProto, condition: Value, one: Value, two: Value, axes: frozenset[str], where: str
    ) -> Value:
        """What an If gives of its two branches."""
        kinds = {value.kind for value in (condition, one, two)}
        kind: Kind = "data" if "data" in kinds else "opaque" if "opaque" in kinds else "other" if axes else "constant"
        whole = one.whole and two.whole
        inputs = (condition, one, two)
        return self._new(kind, node=node, inputs=inputs, axes=axes, grows=True, whole=whole, where=where)
