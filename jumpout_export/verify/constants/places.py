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
from jumpout_export.verify.constants.nodes import Groups, Key, Misplaced, Node, file_nodes, program_nodes

# Of weights that may stand for each other.
_MOST_PAIRS = 4000


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


def misplaced(recording: Recording, groups: Groups, steps: Sequence[Step]) -> tuple[list[Misplaced], list[str]]:
    """Returns the weights that another one stands for in the file, and what is not clear, as phrases.

    Args:
        recording: of the model.
        groups: which weights the file's constants are.
        steps: of the file.
    """
    theirs, ours = file_nodes(steps, groups), program_nodes(recording, groups)
    unclear = _all_read(node for node in (*theirs, *ours) if not node.is_clear)
    common = sorted((_all_read(theirs) & _all_read(ours)) - unclear, key=str)
    bits = {group: 1 << number for number, group in enumerate(common)}
    (found, there), (wanted, here) = _places(theirs, bits), _places(ours, bits)
    other = [group for group in common if found[group] != wanted[group]]
    otherwise = [f"how {_said(recording, groups, group)} is read" for group in _read_otherwise(theirs, ours)]
    if not other:
        exchanged = functools.reduce(operator.or_, (left ^ right for left, right in there ^ here), 0)
        sides = [_said(recording, groups, group) for group in common if bits[group] & exchanged]
        factors = [f"which factors of a product come of {joined(sides)}"] if there and here and sides else []
        return [], factors + otherwise
    moved = _permutation(other, found, wanted, groups, bits)
    if moved is None:
        return [], [f"where {_said(recording, groups, group)} is read" for group in other]
    return [
        Misplaced(_weights_of(recording, groups, place), f"where the model reads {_said(recording, groups, place)}, "
                  f"the file has {_said(recording, groups, value)}")
        for value, place in moved.items()
        if value != place
    ], []  # fmt: skip


def _read_otherwise(theirs: Sequence[Node], ours: Sequence[Node]) -> list[Key]:
    """The groups that the file reads in a way in which the model does not, of those of which all ways are known.

    A table is shown by the rows that inputs look up, and no input looks up all of them: a file may cut it and fill it
    up behind something that data reach without a value, such as a sum with zero times the input.
    """
    kinds: dict[Key, set[str | None]] = {}
    for node in ours:
        for group in node.reads[0]:
            kinds.setdefault(group, set()).add(node.kind)
    pairs = dict.fromkeys((group, node.kind) for node in theirs for group in node.reads[0])
    found = [group for group, kind in pairs if None not in kinds.get(group, {None}) and kind not in kinds[group]]
    return list(dict.fromkeys(found))


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


def _places(nodes: Sequence[Node], bits: Mapping[Key, int]) -> tuple[dict[Key, _Place], set[tuple[int, int]]]:
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


def _all_read(nodes: Iterable[Node]) -> set[Key]:
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
