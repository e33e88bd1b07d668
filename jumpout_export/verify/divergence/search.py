"""Goes back from wrong outputs, operation by operation, to the first layer that is wrong in the file."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jumpout_export.model.operations import Recording
from jumpout_export.onnxfile.constants import FileConstants
from jumpout_export.tolerances import WEIGHT_ROUNDINGS
from jumpout_export.verify.constants.batchnorms import ROOT, Located
from jumpout_export.verify.constants.faults import owner_of
from jumpout_export.verify.constants.matches import Known, same_values

# An error of so many limits is a fault. Up to 2.6 limits were measured on right files, at channels of which a ReLU
# leaves next to nothing; what is less is not named without another sign.
TELLING_ERROR = 8.0
# How much larger the error must be than that of the right results before it, to say that it begins there.
_JUMP = 3.0


@dataclass(frozen=True)
class Divergence:
    """Where a file departs from the model."""

    layer: str | None  # module path, `.` for what the model's own forward computes; None where it was not found
    note: str  # what was seen there, or why it was not found
    reproduced: bool = True  # whether an output was wrong while the values inside of the file were looked at
    operation: int | None = None  # of the recording, where it was found


@dataclass
class Result:
    """What an operation must give, and the value of the file that is closest to it."""

    exact: Tensor  # the reference, in the operation's own precision
    limits: Tensor  # the largest error allowed, per value
    share: float = math.inf  # error over its limit, at its largest; infinite where nothing in the file is like it
    error: float = math.inf  # there, in the result's own unit
    limit: float = 0.0
    where: str = ""  # the value of the file, for a person


class Search:
    """Goes back from the wrong outputs to where the error comes in.

    Args:
        recording: the operations of the model.
        results: what was compared, by index of the operation.
        wrong: the operations that make wrong outputs, and how many times their limit those are off.
        located: what the file has for the BatchNorms of the model.
        constants: of the file.
        original: the model.
    """

    def __init__(
        self,
        recording: Recording,
        results: dict[int, Result],
        wrong: dict[int, float],
        located: list[Located],
        constants: FileConstants,
        original: nn.Module,
    ) -> None:
        self._operations = recording.operations
        self._results = results
        self._located = located
        self._constants = constants
        self._original = original
        self._weights = {**dict(original.named_parameters()), **dict(original.named_buffers())}
        self._wrong = wrong
        self._region: set[int] = set()
        self._threshold = TELLING_ERROR

    def divergence(self) -> Divergence:
        """Returns the first layer that differs, as far as it can be told for certain."""
        for threshold in (TELLING_ERROR, 1.0):
            self._threshold = threshold
            self._region = self._between()
            index = self._first()
            if index is not None and (self._weights_missing(index) or self._stands_out(index)):
                index = self._before(index)
                return Divergence(self._layer(index), self._sentence(index), operation=index)
        missing = [index for index in range(len(self._operations)) if self._weights_missing(index)]
        if len({self._layer(index) for index in missing}) == 1:
            note = f"{self._sentence(missing[0])}; it alone has weights that the file does not hold"
            return Divergence(self._layer(missing[0]), note, operation=missing[0])
        right = next((self._results[index].where for index in self._wrong if self._right(index)), "")
        if right:
            note = f"no layer can be named: the file has the right result, {right}, and makes something else of it"
        else:
            note = "no layer can be named: the error at the outputs grows little by little on the way"
        return Divergence(None, note)

    def _first(self) -> int | None:
        """The first operation that is wrong; of several that are first on their branches, one whose weights are."""
        origins = self._origins()
        missing = [index for index in origins if self._weights_missing(index)]
        return missing[0] if missing else self._absorbing(origins[0]) if origins else None

    def _before(self, index: int) -> int:
        """The operation itself, or one that it depends on whose weights are missing and whose result is off too.

        A small fault can lie within what is taken for rounding where it is made, and grow where values cancel.
        """
        if self._weights_missing(index):
            return index
        upstream: set[int] = set()
        left = [index]
        while left:
            for one in self._operations[left.pop()].inputs:
                if one not in upstream:
                    upstream.add(one)
                    left.append(one)
        off = (one for one in sorted(upstream) if 1 < self._seen(one).share < math.inf and self._weights_missing(one))
        return next(off, index)

    def _between(self) -> set[int]:
        """The operations whose results the file does not have, back from the wrong outputs."""
        region: set[int] = set()
        left = [index for index, share in self._wrong.items() if share > self._threshold]
        while left:
            index = left.pop()
            if index in region or not self._operations[index].from_data or self._right(index):
                continue
            region.add(index)
            left += self._operations[index].inputs
        return region

    def _right(self, index: int) -> bool:
        """Whether the file has the result; one value throughout, as behind a dead ReLU, is no evidence."""
        result = self._results.get(index)
        return result is not None and result.share <= self._threshold and self._telling(index)

    def _telling(self, index: int) -> bool:
        result = self._results.get(index)
        return result is not None and bool(result.exact.min() != result.exact.max())

    def _origins(self) -> list[int]:
        """What reads nothing of the region; results that are one value throughout only if there is nothing else."""
        tainted: set[int] = set()
        origins = []
        for index in sorted(self._region):
            before = tainted.intersection(self._operations[index].inputs)
            if before or self._telling(index):
                tainted.add(index)
            if not before and self._telling(index):
                origins.append(index)
        return origins or sorted(self._region)[:1]

    def _weights_missing(self, index: int) -> bool:
        """Whether the operation reads weights that the file does not hold, neither as they are nor with a BatchNorm."""
        while index and self._operations[index].arguments is self._operations[index - 1].arguments:
            index -= 1  # a further result of the same call
        for one in self._located:
            if one.where and index in (one.layer, one.operation):
                # What is folded into a layer is the layer's: its own operation has nothing left that could be missing.
                return one.wrong and index == (one.operation if one.layer is None else one.layer)
        return any(not self._held(self._weights[name]) for name in self._operations[index].weights)

    def _held(self, weight: Tensor) -> bool:
        if not weight.is_floating_point() or not bool(weight.any()):
            return True  # exporters leave zeros out
        known = Known("", weight.detach().double().numpy(force=True))
        return any(
            same_values(array.reshape(-1), layout.reshape(-1), WEIGHT_ROUNDINGS).all()
            for _, array in self._constants.arrays(weight.numel())
            for layout in known.layouts()
        )

    def _absorbing(self, index: int) -> int:
        """The layer whose weights are wrong and that has taken this operation in, as a Conv takes in a Pad."""
        like = self._results[index].where if index in self._results else ""
        if self._operations[index].weights or like:
            return index
        after = {index}
        for later in sorted(self._region):
            if later > index and after.intersection(self._operations[later].inputs):
                if self._operations[later].weights:
                    return later if self._weights_missing(later) else index
                after.add(later)
        return index

    def _stands_out(self, index: int) -> bool:
        before = [self._results[one].share for one in self._operations[index].inputs if one in self._results]
        share = min(self._seen(index).share, 1e30)
        return share > TELLING_ERROR and share >= _JUMP * max(
            (one for one in before if math.isfinite(one)), default=0.0
        )

    def _seen(self, index: int) -> Result:
        """What was compared at the operation, or behind the BatchNorm that is folded into it."""
        batchnorm = next((one.operation for one in self._located if one.layer == index), index)
        return self._results.get(batchnorm) or Result(torch.zeros(1), torch.zeros(1))

    def _is_users(self, module: str) -> bool:
        return not type(self._original.get_submodule(module)).__module__.startswith("torch.")

    def _layer(self, index: int) -> str:
        """The innermost module that ran, or the one inside of it whose weights were read without calling it."""
        operation = self._operations[index]
        owner = owner_of(operation.weights)
        owner = operation.module if owner is None else owner
        inside = owner.startswith(f"{operation.module}." if operation.module else "")
        return (owner if inside else operation.module) or ROOT

    def _sentence(self, index: int) -> str:
        operation, seen, layer = self._operations[index], self._seen(index), self._layer(index)
        name = f"`{layer}`" if layer != ROOT else "the model's own forward"
        folded = [one.name for one in self._located if one.layer == index]
        readers = [
            self._operations[later]
            for later in sorted(self._region)
            if index in self._operations[later].inputs and "batch_norm" in self._operations[later].name
        ]
        if folded:
            name += f" (with BatchNorm `{folded[0]}` folded into it)"
        elif readers and not self._constants.batchnorms:
            name += f" (or BatchNorm `{readers[0].module}`, which the file has no result of its own for)"
        if not seen.where:
            what = "no value in the file is like its result"
        else:
            what = f"{seen.where} is off by {seen.error:.2g}, limit {seen.limit:.2g}"
        file, line = operation.source
        # What a layer of torch's computes has no line of its own in the user's source.
        source = f", {file}:{line}" if file and self._is_users(operation.module) else ""
        return f"{name} is the first that differs: {what}; {operation.name}{source}"
