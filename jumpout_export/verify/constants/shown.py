"""Which weights that a forward reads are shown to be in a file, each itself or as what is made of it alone.

Data meet a weight as it is, or as something that operations on weights alone have made of it: a mask, a normalized
matrix, rows of a table in another order. An exporter may have worked that out, any part of the way, so that the file
holds the weight or any of these. A weight is shown if, back from every operation on data, one of them is found on
every path.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from jumpout_export.model.operations import Recording
from jumpout_export.text import joined

# Of weights: what they bound or replace is in no row that was not tried.
_BOUNDS = frozenset({"clamp", "clamp_min", "clamp_max", "minimum", "maximum", "where", "masked_fill", "relu",
                     "hardtanh", "round", "floor", "ceil", "sign", "threshold"})  # fmt: skip


@dataclass(frozen=True)
class Read:
    """The weights that what the model returns is made of."""

    every: set[str]  # names of all of them
    unshown: set[str]  # of those that are not shown to be in the file
    # what bounds weights that are in the file as they are, as phrases
    bounds: list[str] = field(default_factory=list)


def weights_read(recording: Recording, weights: set[str], found: set[str], made: set[int], explained: set[int]) -> Read:
    """Returns which weights a model reads, and which of them are not shown to be in a file.

    Args:
        recording: of the model.
        weights: names of all of its weights.
        found: names of those that the file holds.
        made: operations on weights alone whose results the file holds.
        explained: operations whose weights the file is known to hold otherwise, as a BatchNorm folded into a layer.
    """
    operations, live = recording.operations, recording.live()
    if any(operations[index].is_opaque for index in live):  # what runs in there may read any of them
        return Read(set(weights), weights - found)
    every = recording.returned()
    unshown = every - found
    seen: set[int] = set()
    bounds: list[int] = []
    left = [index for index in live if operations[index].from_data]
    left += [index for index in recording.producers if index is not None and not operations[index].from_data]
    for index in live:
        every |= set(operations[index].weights)
    while left:
        index = left.pop()
        if index in seen or index in explained or index in made:
            continue
        seen.add(index)
        if not operations[index].from_data and operations[index].short_name in _BOUNDS and operations[index].weights:
            bounds.append(index)
        unshown |= recording.read_directly(index) - found
        left += [one for one in operations[index].inputs if not operations[one].from_data]
    texts = [
        f"that {joined([f'`{name}`' for name in operations[index].weights])} is bounded ({operations[index].name})"
        for index in sorted(bounds)
    ]
    return Read(every & weights, unshown & weights, texts)
