"""At which sizes of its open axes an ONNX file may begin to compute something else, as far as the file alone says.

What is computed from sizes is followed to where it meets data or decides something (`follow.py`), and looked at as
a function of each size (`evaluate.py`): where it leaves the law that it obeys at smaller ones (`laws.py`), both
sides are to be tried. Shapes that only carry a size on, as for a Reshape, obey one law and are not reported.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jumpout_export.onnxfile.flow.evaluate import Evaluator
from jumpout_export.onnxfile.flow.follow import Flow, Meeting
from jumpout_export.onnxfile.flow.laws import EVERY, FIRST, LARGEST, Law, law
from jumpout_export.onnxfile.flow.shapes import Shapes, light
from jumpout_export.onnxfile.flow.signature import crossing, signature, table_length
from jumpout_export.onnxfile.flow.values import Array, Sizes, Value
from jumpout_export.onnxfile.load import inlined
from jumpout_export.onnxfile.reference import Runner, UnknownError
from jumpout_export.onnxfile.walk import default_opset
from jumpout_export.text import first_line, joined

if TYPE_CHECKING:
    from onnx import ModelProto

# Work of all functions together, about a second; what is left then is not followed.
_MOST_STEPS = 10_000
# A size at which it shows that a size is part of the values, if it should not be.
_DRIFT = 128


@dataclass(frozen=True)
class SizeUse:
    """A node at which the size of an open axis decides something.

    Attributes:
        where: the node, for a person, such as `node_Where_3 (Where) in then_branch of node_If_2 (If)`.
        what: what happens there, a phrase.
        axes: the open axes, by name; with several, it was found where all have the same size.
        sizes: both sides of each size at which something changes, or may.
        followed: whether it was worked out as a function of the size, up to `until`; else constants alone tell.
        until: the largest size up to which it was.
    """

    where: str
    what: str
    axes: tuple[str, ...]
    sizes: tuple[int, ...]
    followed: bool = True
    until: int = 0

    def __str__(self) -> str:
        at = f" at {joined([str(size) for size in self.sizes])}" if self.sizes else ""
        return f"{self.where} {self.what}{at} along {joined(list(self.axes))}"


@dataclass(frozen=True)
class Plan:
    """What is to be tried, and what is left.

    Attributes:
        sizes: by name of the axis, for each further run; the axes that are left out keep the example's.
        left: the uses that are not, or not wholly, shown by them.
    """

    sizes: list[dict[str, int]]
    left: list[SizeUse]


def sizes_to_try(
    uses: Iterable[SizeUse], known: Sizes, batch: str | None = None, budget: int = 1024, most: int = 16
) -> Plan:
    """Returns the sizes at which a file has to be compared: those that were worked out before others, cheapest first.

    Args:
        uses: of `size_uses`.
        known: the example's sizes by name of the axis.
        batch: the name of the batch's axis, None where its size is fixed.
        budget: of all runs together, in forwards of one sample of the example's size; a sample that is larger along
            other axes counts for as many as it is larger.
        most: number of runs.
    """
    wanted: dict[tuple[tuple[str, int], ...], list[SizeUse]] = {}
    left: dict[SizeUse, None] = {}
    for use in uses:
        if not use.followed:
            left[use] = None
        for size in use.sizes:
            moved = tuple((name, size) for name in use.axes if known.get(name) != size)
            wanted.setdefault(moved, []).append(use)
    wanted.pop((), None)

    def cost(moved: tuple[tuple[str, int], ...]) -> float:
        return math.prod(size if name == batch else max(1.0, size / known[name]) for name, size in moved)

    sizes: list[dict[str, int]] = []
    for moved in sorted(wanted, key=lambda one: (not any(use.followed for use in wanted[one]), cost(one))):
        price = math.ceil(cost(moved))
        if price <= budget and len(sizes) < most:
            budget -= price
            sizes.append(dict(moved))
        else:
            left |= dict.fromkeys(wanted[moved])
    return Plan(sizes, list(left))


def size_uses(
    model: ModelProto, opened: Sequence[Mapping[int, str]], known: Sizes, batch: str | None = None
) -> list[SizeUse]:
    """Returns where the sizes of open axes decide something in a file, in the order of its nodes.

    Args:
        model: not changed; external data is not read.
        opened: per input of the graph, {axis: name}; axes of one name have one size.
        known: the example's sizes by name of the axis.
        batch: the name of the batch's axis, None where its size is fixed.
    """
    if not known:
        return []
    try:
        return _uses(inlined(model), opened, known, batch)
    except Exception as error:  # a file may hold anything; it is no reason to call it wrong
        what = f"could not be followed ({first_line(error)})"
        return [SizeUse("what is computed from sizes", what, (name,), (), followed=False) for name in known]


def _uses(model: ModelProto, opened: Sequence[Mapping[int, str]], known: Sizes, batch: str | None) -> list[SizeUse]:
    bare = light(model, opened)
    shapes = Shapes(bare, known)
    evaluator = Evaluator(Runner(default_opset(model)), shapes)
    flow = Flow(model, shapes.symbolic, batch, evaluator)
    shapes.keep({value.name for meeting in flow.meetings if meeting.value for value in _measured(meeting.value)})
    search = _Search(evaluator, known, batch, _elements(bare, known, batch) | flow.together)
    found: dict[tuple[object, ...], SizeUse] = {}
    # Shapes last: there are many of them, and a wrong one hardly goes unnoticed.
    for meeting in sorted(flow.meetings, key=lambda one: (one.value is not None, one.shapes)):
        for use in search.uses(meeting):
            found.setdefault((use.axes, use.sizes, use.followed), use)  # of what many nodes read, the first is named
    told = {use.axes for use in found.values() if use.sizes and not use.followed}
    more = [] if flow.complete and not search.left else list(known)
    return [
        *(use for use in found.values() if use.sizes or use.axes not in told),
        *(
            SizeUse("what further nodes", "do with sizes is not looked at", (name,), (), followed=False)
            for name in more
        ),
    ]


def _measured(value: Value) -> list[Value]:
    return [one.inputs[0] for one in value.before() if one.node is not None and one.node.op_type in ("Shape", "Size")
            and one.inputs[0] is not None]  # fmt: skip


class _Search:
    """Looks at what meets data as a function of each size."""

    def __init__(self, evaluator: Evaluator, known: Sizes, batch: str | None, elements: frozenset[int]) -> None:
        self._evaluator, self._known, self._batch, self._elements = evaluator, known, batch, elements
        self._laws: dict[tuple[int, tuple[str, ...]], Law] = {}
        self.left = False  # whether there is more than was looked at

    def uses(self, meeting: Meeting) -> list[SizeUse]:
        axes = tuple(name for name in self._known if name in meeting.axes)
        value = meeting.value
        lines = [(name,) for name in axes] + ([axes] if len(axes) > 1 else [])
        # A constant may be about a size, or about a number of elements.
        possible = {-(-one // per) for one in meeting.constants for per in self._elements}
        # The largest index is one less than the size, and where it has to be larger than a constant, that is two more.
        near = _both_sides(size + shift for size in possible if size >= FIRST for shift in (0, 1, 2))
        if value is None and meeting.enters:
            return [self._drifts(meeting.where, meeting.what, (name,)) for name in axes]
        if value is None or value.kind == "opaque":
            return [SizeUse(meeting.where, meeting.what, line, near, followed=False) for line in lines[: len(axes)]]
        found: list[SizeUse] = []
        for line in lines:
            if self._evaluator.runner.steps > _MOST_STEPS:
                self.left = True
                break
            key = value.number, line
            if key not in self._laws:
                self._laws[key] = self._law(value, line, meeting.constants)
            one = self._laws[key]
            if not one.regular and self._evaluator.runner.steps <= _MOST_STEPS:
                if len(line) == 1:
                    found.append(self._irregular(meeting, value, line, near, one.until))
                continue
            # Where a bound begins to bind both laws agree, and only the next size tells.
            at = {size + shift for size in one.breaks for shift in (0, 1)}
            sizes = _both_sides(at) + self._in_a_period(one, line)
            new = tuple(size for size in sizes if not any(size in use.sizes for use in found))
            beyond = _both_sides(size + shift for size in meeting.constants if one.until < size for shift in (0, 1))
            if new:
                found.append(SizeUse(meeting.where, meeting.what, line, new, until=one.until))
            elif meeting.enters and len(line) == 1 and not one.constant:
                found.append(self._drifts(meeting.where, meeting.what, line))
            if beyond and one.until < LARGEST and len(line) == 1:
                found.append(SizeUse(meeting.where, meeting.what, line, beyond, followed=False, until=one.until))
        return found

    def _drifts(self, where: str, what: str, line: tuple[str, ...]) -> SizeUse:
        """What is a little wrong for every size is more so for a large one, and nothing shows the largest."""
        return SizeUse(where, what, line, (max(_DRIFT, 2 * self._known[line[0]]),), followed=False)

    def _irregular(
        self, meeting: Meeting, value: Value, line: tuple[str, ...], near: tuple[int, ...], until: int
    ) -> SizeUse:
        """What every size, or every place, has a value of its own for: weights, if it is a table of places."""
        length = max((table_length(one, self._evaluator) for one in value.before()), default=0)
        if length and line != (self._batch,):
            return SizeUse(meeting.where, f"reads a table of {length} places", line, (length,), until=length)
        sizes = tuple(sorted({*near, *([length] if length >= FIRST else [])}))
        return SizeUse(meeting.where, f"{meeting.what}, by no simple law", line, sizes, followed=False, until=until)

    def _in_a_period(self, one: Law, line: tuple[str, ...]) -> tuple[int, ...]:
        """The sizes next to the example's between which what is rounded steps; the smallest are always tried."""
        if one.period <= 3:
            return ()
        base = max(self._known[name] for name in line)
        return _both_sides(size + max(0, -(-(base - size) // one.period)) * one.period for size in one.steps[:2])

    def _law(self, value: Value, line: tuple[str, ...], constants: Iterable[int]) -> Law:
        equal = [one for one in value.before() if one.node is not None and one.node.op_type == "Equal"]

        def sizes(size: int) -> dict[str, int]:
            return {**self._known, **dict.fromkeys(line, size)}

        def at(size: int) -> Array | None:
            if self._evaluator.runner.steps > _MOST_STEPS:
                return None
            try:
                return signature(self._evaluator(value, sizes(size))[0], value.grows)
            except UnknownError:
                return None
            except Exception:  # the file itself fails there, as numpy and onnx say in many ways
                return np.zeros(0)

        def between(low: int, high: int) -> list[int]:
            return [size for one in equal for size in crossing(self._evaluator, one, sizes, low, high)]

        self._evaluator.prepare(value, [sizes(size) for size in EVERY])
        return law(at, constants, between)


def _elements(bare: ModelProto, known: Sizes, batch: str | None) -> frozenset[int]:
    """How many elements an input has per entry of its batch, and 1."""
    found = {1}
    for value in bare.graph.input:
        dims = [dim.dim_value or known.get(dim.dim_param, 1) for dim in value.type.tensor_type.shape.dim
                if not batch or dim.dim_param != batch]  # fmt: skip
        found.add(math.prod(dims))
    return frozenset(found)


def _both_sides(sizes: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted({side for size in sizes for side in (size - 1, size) if side > 0}))
