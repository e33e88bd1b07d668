"""The operations of a program and the nodes of a file that data reach, with the weights that each of them reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from jumpout_export.model.operations import Recording
from jumpout_export.onnxfile.steps import Step
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
# How an operator reads a weight: one of PyTorch's and one of ONNX's of a kind say the same.
_KINDS = {
    **dict.fromkeys(
        ("embedding", "index", "index_select", "gather", "Gather", "GatherElements", "GatherND"), "look-up"
    ),
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "addmm", "baddbmm", "convolution"), "product"),
    **dict.fromkeys(("MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum"), "product"),
}


@dataclass(frozen=True)
class Misplaced:
    """A weight of the model that another one stands for in the file."""

    weights: tuple[str, ...]  # that the model reads there
    text: str  # for a person


@dataclass
class Node:
    """An operation, or a node of the file, that data reach: what it reads first, what then, and what is before it."""

    reads: tuple[list[Key], list[Key]]
    before: Sequence[int]
    # pairs of factors, where both are data: numbers of what is before it, left and right
    products: Sequence[tuple[Sequence[int], Sequence[int]]] = ()
    is_clear: bool = True  # whether it is known which of what it reads stands behind which
    kind: str | None = None  # how it reads what it reads first; None where that is not known


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


def file_nodes(steps: Sequence[Step], groups: Groups) -> list[Node]:
    """Returns the nodes of a file that data reach, in their order."""
    nodes = []
    for step in steps:
        bias = _BIAS_IN_FILE.get(step.node.op_type, -1)
        reads: tuple[list[Key], list[Key]] = ([], [])
        for place, source in step.reads:
            if (key := ("constant", source.name)) in groups:
                reads[place == bias].append(groups(key))
        is_product = step.node.op_type == "MatMul" and len(step.before) == 2
        products = [((step.before[0],), (step.before[1],))] if is_product else []
        nodes.append(
            Node(
                reads, step.before, products, all(place >= 0 for place, _ in step.reads), _KINDS.get(step.node.op_type)
            )
        )
    return nodes


def program_nodes(recording: Recording, groups: Groups) -> list[Node]:
    """Returns the operations on data that reach what the model returns, in their order."""
    operations, live = recording.operations, recording.live()
    numbers: dict[int, int] = {}
    nodes: list[Node] = []
    for index in sorted(live):
        operation = operations[index]
        if not operation.from_data:
            continue
        numbers[index] = len(nodes)
        if not operation.reads_values:
            nodes.append(Node(([], []), ()))
            continue
        before = tuple(numbers[one] for one in operation.inputs if one in numbers)
        if ("call", index) in groups:
            nodes.append(Node(([groups(("call", index))], []), before))
            continue
        place = _BIAS.get(operation.short_name, -1)
        bias = operation.arguments[place] if 0 <= place < len(operation.arguments) else None
        last = recording.names.get(id(bias), "")
        reads: tuple[list[Key], list[Key]] = ([], [])
        for key in _read_by(recording, index, groups):
            reads[key == ("weight", last)].append(groups(key))
        # An attention is two products of three operands, and does not say which of them are made of weights alone.
        is_clear = not operation.short_name.startswith(_ATTENTION) or not reads[0]
        nodes.append(
            Node(reads, before, _products(operation.short_name, before), is_clear, _KINDS.get(operation.short_name))
        )
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
