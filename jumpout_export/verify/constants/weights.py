"""The constants of a saved file against the model's weights, value by value: also those that no sample reached.

A wrong row of an embedding changes no output as long as no sample asks for it. So every constant of the file, and what
it makes of constants alone where data meet that, is looked for among the weights (parameters, buffers, tables of
integers), bit for bit, and among what the model makes of weights alone (a normalized weight, a mask), to ROUNDINGS eps;
as it is or with the last two axes swapped, joined with others or cut. One that is none of these, and has most of its
values in common with one, or the name of a weight, is wrong.

What is left on either side is not shown to be right. A weight that the forward reads and that is nowhere, while the
file has something else of its size, or more than UNSHOWN of all values that the forward reads, is no pass. Those that
a BatchNorm is folded into are the subject of `batchnorms.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from jumpout_export.model.operations import Recording
from jumpout_export.onnxfile.tables import Constant
from jumpout_export.report import Check, CheckVerdict
from jumpout_export.text import count, joined
from jumpout_export.tolerances import NEAR, UNSHOWN
from jumpout_export.verify.constants.batchnorms import Located
from jumpout_export.verify.constants.bounded import bounded_tables, same_when_bounded
from jumpout_export.verify.constants.known import Recorded, known_values
from jumpout_export.verify.constants.matches import (
    Known,
    Match,
    Wrong,
    candidates_of,
    describe,
    is_permuted,
    matches,
    same_values,
)
from jumpout_export.verify.constants.nodes import Misplaced
from jumpout_export.verify.constants.pieces import Pieces
from jumpout_export.verify.constants.shown import Read, weights_read

# So much of a weight that is nowhere makes a constant of its size a wrong copy of it; of one that is one value
# throughout nearly all, because half of many masks is.
_MOST, _NEARLY_ALL = 0.5, 0.9


@dataclass
class Weights:
    """What of a model's weights is in a file."""

    found: set[str] = field(default_factory=set)  # names of those that the file holds
    # what each constant of the file is, bit for bit or to some roundings, by its name
    held: dict[str, tuple[Known, ...]] = field(default_factory=dict)
    made: set[int] = field(default_factory=set)  # operations on weights alone whose results it holds
    wrong: list[Wrong] = field(default_factory=list)  # constants that should be a known value and are not
    misplaced: list[Misplaced] = field(default_factory=list)  # weights that others stand for
    unplaced: list[str] = field(default_factory=list)  # what is not clear of where they are read, as phrases
    left: list[Constant] = field(default_factory=list)  # that nothing explains
    unknown: list[Constant] = field(default_factory=list)  # that the file makes of others, nobody knows what
    unbounded: list[str] = field(default_factory=list)  # what the model bounds, and the file not, as phrases
    missing: list[Known] = field(default_factory=list)  # weights that the forward reads and nothing shows
    share: float = 0.0  # of all values that the forward reads, that those have
    unread: list[str] = field(default_factory=list)  # names of weights that the forward does not read
    judged: list[str] = field(default_factory=list)  # names of those that no check of BatchNorms is about

    def replaced(self, weight: Known) -> list[Constant]:
        """Returns what the file has of the size of a weight that is missing, and nothing explains."""
        alike = weight.judged and weight.array.size > 1
        return [one for one in self.left if alike and one.size == weight.array.size]

    def unshown(self) -> list[str]:
        """Returns what is known by the outputs alone, weights and constants, with their sizes."""
        texts = [f"`{one.name}` ({_size(one.array.size, self.replaced(one))})" for one in self.missing]
        texts += [f"`{one.name}` of the file ({_size(one.size)})" for one in self.left]
        texts += [f"`{one.name}` of the file (it is made of constants there)" for one in self.unknown]
        return texts + self.unplaced + self.unbounded

    def check(self, problem: str) -> Check | None:
        """Returns the verdict, None for a model without weights; `problem` says why its forward is not known."""
        if not self.judged and not self.missing:
            return None
        replaced = any(self.replaced(one) for one in self.missing)
        refused = replaced or self.share > UNSHOWN
        wrong = [*(one.text for one in self.wrong), *(one.text for one in self.misplaced)]
        parts = [joined(wrong)] if wrong else []
        if refused:
            parts.append(f"not shown: {self.share:.2g} of all values that the forward reads, limit {UNSHOWN:g}")
            parts += [f"the forward could not be recorded: {problem}"] if problem else []
        named = sum(name in self.found for name in self.judged)
        parts.append(f"{named} of {len(self.judged)} weights are in the file bit for bit")
        unshown = self.unshown()
        parts += [f"known by the outputs alone: {joined(unshown)}"] if unshown else []
        parts += [f"not read by the forward: {joined([f'`{name}`' for name in self.unread])}"] if self.unread else []
        verdict: CheckVerdict = "fail" if wrong else "not_run" if refused else "pass"
        return Check(name="weights", measured=len(wrong), limit=0, verdict=verdict, note="; ".join(parts))


def find_weights(constants: list[Constant], model: nn.Module, recorded: Recorded, located: list[Located]) -> Weights:
    """Returns what of a model's weights is among the constants of a file.

    Args:
        constants: of the file.
        model: in eval mode, on the CPU.
        recorded: what its forward did.
        located: what the file has for its BatchNorms.
    """
    known = known_values(model, recorded, located)
    weights = {one.name: one for one in known if one.name}
    result = Weights(judged=[name for name, one in weights.items() if one.judged])
    result.unknown = [one for one in constants if not one.is_known]
    constants = [one for one in constants if one.is_known]
    wrong = _match([one for one in constants if not one.is_shape], known, result)
    if recorded.recording is not None:
        result.wrong = wrong
        _take_bounded(recorded.recording, weights, result)
    else:  # what resembles a weight may be what the forward makes of it
        result.left += [one.constant for one in wrong]
    explained = {name for one in located for name in one.constants}
    result.left = [one for one in result.left if one.name not in explained]
    _take_pieces(weights, result)
    read = _read(weights, recorded, located, result)
    result.unbounded = read.bounds
    result.unread = [name for name in result.judged if name not in read.every and name not in result.found]
    if recorded.recording is not None:
        _take_wrong_copies([one for name, one in weights.items() if name in read.unshown and one.judged], result)
    wrong_names = {name for one in result.wrong for name in one.known.weights}
    numbers = {number for one in constants for number in _number(one)}
    result.missing = [
        one for name, one in weights.items() if name in read.unshown - wrong_names and not _is_a_number(one, numbers)
    ]
    total = sum(weights[name].array.size for name in read.every)
    # One number is a factor, which shows in every value, or a bound, which `numbers.py` is about.
    result.share = sum(one.array.size for one in result.missing if one.array.size > 1) / max(total, 1)
    result.left = [one for one in result.left if one.size > 1]
    return result


def _match(constants: list[Constant], known: list[Known], result: Weights) -> list[Wrong]:
    """Takes down what the constants are, and returns those that are wrong."""
    by_size: dict[int, list[Known]] = defaultdict(list)
    for one in known:
        by_size[one.array.size].append(one)
    candidates = {size: candidates_of(by_size[size]) for size in {one.size for one in constants} & by_size.keys()}
    wrong = []
    for constant in constants:
        match = matches(constant, candidates.get(constant.size, []))
        if not match.equal:  # a square weight resembles itself with other axes swapped
            permuted = tuple(one for one in by_size.get(constant.size, []) if is_permuted(constant, one))
            match = Match(permuted) if permuted else match
        result.held[constant.name] = match.equal
        for one in match.equal:
            result.found |= set(one.weights) if one.name or one.rearranged else set()
            result.made |= {one.operation} if one.operation is not None else set()
        if match.wrong is not None:
            wrong.append(match.wrong)
        elif not match.equal:
            result.left.append(constant)
    return wrong


def _take_bounded(recording: Recording, weights: dict[str, Known], result: Weights) -> None:
    for name, largest, order in bounded_tables(recording):
        for constant in [*result.left, *(one.constant for one in result.wrong)]:
            if name in weights and same_when_bounded(constant, weights[name], largest, order):
                result.found.add(name)
                result.left = [one for one in result.left if one is not constant]
                result.wrong = [one for one in result.wrong if one.constant is not constant]


def _take_pieces(weights: dict[str, Known], result: Weights) -> None:
    pieces = Pieces({name: one.array for name, one in weights.items()})
    result.left = [one for one in result.left if not pieces.take(one.values(), one.dims)]
    result.found |= pieces.whole()


def _read(weights: dict[str, Known], recorded: Recorded, located: list[Located], result: Weights) -> Read:
    if recorded.recording is None:
        return Read(set(weights), set(weights) - result.found)
    explained = {index for one in located if one.where for index in (one.operation, one.layer) if index is not None}
    return weights_read(recorded.recording, set(weights), result.found, result.made, explained)


def _take_wrong_copies(missing: list[Known], result: Weights) -> None:
    """Of weights that are nowhere, those that something of their size is most of, or close to in every value."""
    for weight in missing:
        for constant in result.left if weight.array.size > 1 else []:
            text = _wrong_copy(constant, weight) if constant.size == weight.array.size else ""
            if text:
                result.wrong.append(Wrong(weight, constant, text))
                result.left.remove(constant)
                break


def _wrong_copy(constant: Constant, weight: Known) -> str:
    values = constant.values()
    for layout in weight.layouts():
        wanted = layout.reshape(-1)
        same = same_values(values, wanted, None)
        if same.mean() >= (_NEARLY_ALL if weight.is_one_value else _MOST):
            return describe(constant, weight, layout, int((~same).sum()))
        size = float(np.linalg.norm(wanted.astype(np.float64)))
        error = float(np.linalg.norm(values.astype(np.float64) - wanted))
        if values.dtype.kind == "f" and error <= NEAR * size:
            text = f"`{weight.name}` is off by {error / size:.2g} of its size in the file"
            return text + ("" if constant.name == weight.name else f", there `{constant.name}`")
    return ""


def _number(constant: Constant) -> Iterator[object]:
    """The value of a constant that is one throughout."""
    values = constant.values()
    if values.size and values[0] == values[-1] and (values == values[0]).all():
        yield values[0]


def _is_a_number(weight: Known, numbers: set[object]) -> bool:
    """Whether the file may have a weight as a number, one that it holds, or as nothing at all."""
    first = weight.array.flat[0]
    return weight.is_one_value and (first in (0, 1) or first in numbers)


def _size(size: int, instead: list[Constant] | None = None) -> str:
    return count(size, "value") + (f", the file has `{instead[0].name}` of that size" if instead else "")
