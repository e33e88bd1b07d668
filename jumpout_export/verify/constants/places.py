"""Whether a file reads each weight where the model reads it: behind the same weights, and before the same.

Two layers of one shape may have each other's weights, and all of them are in the file. Where a gain behind them is
zero no output tells. So what stands before a weight and behind it is followed, in PyTorch's program and in the file,
through everything that data reach, whatever the order of the nodes; both have to be the same for each weight that is
in the file bit for bit. Weights of the same values are one: nothing tells them apart, and nothing has to.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from jumpout_export.model.operations import Recording
from jumpout_export.onnxfile.steps import Step
from jumpout_export.text import joined
from jumpout_export.verify.constants.batchnorms import Located
from jumpout_export.verify.constants.matches import Known

# A weight, what is made of weights alone, a call of a BatchNorm or of the layer that it is folded into, and a constant
# of the file; by name or by number of the operation.
Key = tuple[str, str | int]

# Where a layer adds its bias, of PyTorch's operators and of ONNX's: it stands behind the weight.
_BIAS = {"addmm": 0, "baddbmm": 0, "convolution": 2, "native_layer_norm": 3, "native_group_norm": 2}
_BIAS_IN_FILE = {"Gemm": 2, "Conv": 2, "ConvTranspose": 2, "LayerNormalization": 2, "GroupNormalization": 2,
                 "InstanceNormalization": 2}  # fmt: skip

_ATTENTION = "_scaled_dot_product"
# Of weights that may stand for each other.
_MOST_PAIRS = 4000


@dataclass(frozen=True)
class Misplaced:
    """A weight of the model that another one stands for in the file."""

    weights: tuple[str, ...]  # that the model reads there
    text: str  # for a person


@dataclass
class _Node:
    """An operation, or a node of the file, that data reach: what it reads first, what then, and what is before it."""

    reads: tuple[list[Key], list[Key]]
    before: Sequence[int]
    # pairs of factors, where both are data: numbers of what is before it, left and right
    products: Sequence[tuple[Sequence[int], Sequence[int]]] = ()
    is_clear: bool = True  # whether it is known which of what it reads stands behind which


@dataclass
class _Place:
    """What stands before a weight wherever it is read, and what behind it: sets of groups, as bits."""

    up: set[int] = field(default_factory=set)
    down: set[int] = field(default_factory=set)

    def renamed(self, bits: Mapping[int, int]) -> _Place:
        """Returns it with some bits for others."""
        gone = sum(bits)

        def moved(mask: int) -> int:
            return (mask & ~gone) | sum(new for old, new in bits.items() if mask & old)

        return _Place({moved(mask) for mask in self.up}, {moved(mask) for mask in self.down})


class Groups:
    """Which weights, operations and constants of the file are the same."""

    def __init__(self, held: Mapping[str, tuple[Known, ...]], located: Iterable[Located]) -> None:
        """Takes what each constant of the file is, by name, and where the BatchNorms are.

        Zeros and ones are in none: exporters leave them out where they say nothing.
        """
        self._of: dict[Key, Key] = {}
        self._sizes: dict[Key, int] = {}
        for name, equal in held.items():
            for one in equal:
                is_left_out = one.is_one_value and one.array.flat[0] in (0, 1)
                if not is_left_out and (one.name or one.operation is not None):
                    key: Key = ("weight", one.name) if one.name else ("made", one.operation or 0)
                    self._join(("constant", name), key)
                    self._sizes[key] = one.array.size
        for call in located:
            for index in [call.operation, *([call.layer] if call.layer is not None else [])] if call.where else ():
                for name in call.constants:
                    self._join(("constant", name), ("call", index))

    def _join(self, one: Key, two: Key) -> None:
        self._of.setdefault(two, two)
        self._of[self(one)] = self(two)

    def __call__(self, key: Key) -> Key:
        """Returns the group of a key; itself, if it is in none."""
        while (parent := self._of.get(key, key)) != key:
            key = parent
        return key

    def __contains__(self, key: Key) -> bool:
        return key in self._of

    def members(self, group: Key) -> list[Key]:
        """Returns the keys of a group, weights by name first."""
        return sorted(
            (key for key in self._of if self(key) == group), key=lambda key: (key[0] != "weight", str(key[1]))
        )

    def size(self, group: Key) -> int:
        """Returns the number of values of a group, 0 where it is not known."""
        return max((self._sizes.get(key, 0) for key in self.members(group)), default=0)


def misplaced(recording: Recording, groups: Groups, steps: Sequence[Step]) -> tuple[list[Misplaced], list[str]]:
    """Returns the weights that another one stands for in the file, and what is not clear, as phrases.

    Args:
        recording: of the model.
        groups: which weights the file's constants are.
        steps: of the file.
    """
    theirs, ours = _file_nodes(steps, groups), _program_nodes(recording, groups)
    unclear = _all_read(node for node in (*theirs, *ours) if not node.is_clear)
    common = sorted((_all_read(theirs) & _all_read(ours)) - unclear, key=str)
    bits = {group: 1 << number for number, group in enumerate(common)}
    (found, there), (wanted, here) = _places(theirs, bits), _places(ours, bits)
    other = [group for group in common if found[group] != wanted[group]]
    if not other:
        exchanged = functools.reduce(operator.or_, (left ^ right for left, right in there ^ here), 0)
        sides = [_said(recording, groups, group) for group in common if bits[group] & exchanged]
        return [], [f"which factors of a product come of {joined(sides)}"] if there and here and sides else []
    moved = _permutation(other, found, wanted, groups, bits)
    if moved is None:
        return [], [f"where {_said(recording, groups, group)} is read" for group in other]
    return [
        Misplaced(_weights_of(recording, groups, place), f"where the model reads {_said(recording, groups, place)}, "
                  f"the file has {_said(recording, groups, value)}")
        for value, place in moved.items()
        if value != place
    ], []  # fmt: skip


def _permutation(
    other: list[Key], found: dict[Key, _Place], wanted: dict[Key, _Place], groups: Groups, bits: dict[Key, int]
) -> dict[Key, Key] | None:
    """For each group in the file the one in whose place it stands, if that explains all; else None.

    Two that stand for each other are tried first, then all of a size in the order of how much is before them.
    """
    sizes = {group: groups.size(group) for group in other}
    pairs = [pair for pair in itertools.combinations(other, 2) if sizes[pair[0]] == sizes[pair[1]]]
    ordered: dict[Key, Key] = {}
    for size in set(sizes.values()):
        alike = [group for group in other if sizes[group] == size]
        values = sorted(alike, key=lambda group: _rank(found[group]))
        ordered |= dict(zip(values, sorted(alike, key=lambda group: _rank(wanted[group])), strict=True))
    for moved in (*({one: two, two: one} for one, two in pairs[:_MOST_PAIRS]), ordered):
        renamed = {bits[value]: bits[place] for value, place in moved.items()}
        if all(found[group].renamed(renamed) == wanted[moved.get(group, group)] for group in other):
            return moved
    return None


def _rank(place: _Place) -> tuple[list[int], list[int]]:
    """How much is before a weight and behind it; the same for what stands in its place."""
    return sorted(mask.bit_count() for mask in place.up), sorted(-mask.bit_count() for mask in place.down)


def _file_nodes(steps: Sequence[Step], groups: Groups) -> list[_Node]:
    nodes = []
    for step in steps:
        bias = _BIAS_IN_FILE.get(step.node.op_type, -1)
        reads: tuple[list[Key], list[Key]] = ([], [])
        for place, source in step.reads:
            if (key := ("constant", source.name)) in groups:
                reads[place == bias].append(groups(key))
        is_product = step.node.op_type == "MatMul" and len(step.before) == 2
        products = [((step.before[0],), (step.before[1],))] if is_product else []
        nodes.append(_Node(reads, step.before, products, all(place >= 0 for place, _ in step.reads)))
    return nodes


def _program_nodes(recording: Recording, groups: Groups) -> list[_Node]:
    """The operations on data that reach what the model returns."""
    operations, live = recording.operations, recording.live()
    numbers: dict[int, int] = {}
    nodes: list[_Node] = []
    for index in sorted(live):
        operation = operations[index]
        if not operation.from_data:
            continue
        numbers[index] = len(nodes)
        if not operation.reads_values:
            nodes.append(_Node(([], []), ()))
            continue
        before = tuple(numbers[one] for one in operation.inputs if one in numbers)
        if ("call", index) in groups:
            nodes.append(_Node(([groups(("call", index))], []), before))
            continue
        place = _BIAS.get(operation.short_name, -1)
        bias = operation.arguments[place] if 0 <= place < len(operation.arguments) else None
        last = recording.names.get(id(bias), "")
        reads: tuple[list[Key], list[Key]] = ([], [])
        for key in _read_by(recording, index, groups):
            reads[key == ("weight", last)].append(groups(key))
        # An attention is two products of three operands, and does not say which of them are made of weights alone.
        is_clear = not operation.short_name.startswith(_ATTENTION) or not reads[0]
        nodes.append(_Node(reads, before, _products(operation.short_name, before), is_clear))
    return nodes


def _products(name: str, before: Sequence[int]) -> list[tuple[Sequence[int], Sequence[int]]]:
    """The factors of an operation's products of data."""
    if name in ("mm", "bmm") and len(before) == 2:
        return [(before[:1], before[1:])]
    if name.startswith(_ATTENTION) and len(before) > 2:
        query, key, value, *mask = before
        return [((query,), (key,)), ((query, key, *mask), (value,))]
    return []


def _read_by(recording: Recording, index: int, groups: Groups) -> list[Key]:
    """What an operation reads of weights, back to what the file holds."""
    found: dict[Key, None] = {}
    left, seen = [index], set[int]()
    while left:
        number = left.pop()
        if number in seen:
            continue
        seen.add(number)
        if number != index and ("made", number) in groups:
            found["made", number] = None
            continue
        found |= dict.fromkeys(key for name in recording.read_directly(number) if (key := ("weight", name)) in groups)
        left += [one for one in recording.operations[number].inputs if not recording.operations[one].from_data]
    return list(found)


def _places(nodes: Sequence[_Node], bits: Mapping[Key, int]) -> tuple[dict[Key, _Place], set[tuple[int, int]]]:
    """What stands before and behind each group, of those that have a bit, and in the factors of products of data."""
    found = {group: _Place() for group in bits}
    after: list[int] = []
    masks = [tuple(sum({bits.get(group, 0) for group in some}) for some in node.reads) for node in nodes]
    for node, (first, last) in zip(nodes, masks, strict=True):
        mask = 0
        for one in node.before:
            mask |= after[one]
        _note(found, node.reads[0], bits, up=mask)
        _note(found, node.reads[1], bits, up=mask | first)
        after.append(mask | first | last)
    behind = [0] * len(nodes)
    for number in range(len(nodes) - 1, -1, -1):
        node, (first, last) = nodes[number], masks[number]
        _note(found, node.reads[1], bits, down=behind[number])
        _note(found, node.reads[0], bits, down=behind[number] | last)
        for one in node.before:
            behind[one] |= behind[number] | first | last
    factors = {
        tuple(functools.reduce(operator.or_, (after[one] for one in some), 0) for some in pair)
        for node in nodes
        for pair in node.products
    }
    return found, {(left, right) for left, right in factors if left != right}


def _note(
    found: dict[Key, _Place],
    reads: Iterable[Key],
    bits: Mapping[Key, int],
    up: int | None = None,
    down: int | None = None,
) -> None:
    for group in reads:
        if group in found:
            found[group].up |= {up & ~bits[group]} if up is not None else set()
            found[group].down |= {down & ~bits[group]} if down is not None else set()


def _all_read(nodes: Iterable[_Node]) -> set[Key]:
    return {group for node in nodes for some in node.reads for group in some}


def _weights_of(recording: Recording, groups: Groups, group: Key) -> tuple[str, ...]:
    for kind, name in groups.members(group):
        if kind == "weight":
            return (str(name),)
        if kind in ("made", "call") and isinstance(name, int):
            return recording.operations[name].weights
    return ()


def _said(recording: Recording, groups: Groups, group: Key) -> str:
    kind, name = groups.members(group)[0]
    made_of = joined([f"`{one}`" for one in _weights_of(recording, groups, group)])
    return f"`{name}`" if kind == "weight" else f"what is made of {made_of}"
