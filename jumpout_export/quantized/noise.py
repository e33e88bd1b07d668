"""What rounding does to every tensor: how much of it is clipped, and how large the signal is against the noise.

Signal to quantization noise is 20 log10(|float| / |float - quantized|) in dB, over all values of all samples: `float`
is the tensor in the file's twin without rounding, which is verified against the model, `quantized` what is made of the
integers. It falls from tensor to tensor as roundings add up, and most at the layer that costs most.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from jumpout_export.model.batches import Batch
from jumpout_export.model.probes import rows
from jumpout_export.model.signature import tensors
from jumpout_export.onnxfile.constants import Array
from jumpout_export.quantized.floating import Twin
from jumpout_export.quantized.power import Power
from jumpout_export.quantized.read import QuantizedFile
from jumpout_export.runtime.marked import with_outputs
from jumpout_export.runtime.session import Session, open_session

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

# Tensors of so many bytes are held at once; at least one sample.
_BYTES_AT_ONCE = 1 << 28
# Of the range. The largest value of the samples that it was taken from is moved beyond its end by the noise of
# roundings before, and many values are where a channel hardly moves; that is noise, and counted there.
_BEYOND = 0.05


@dataclass
class Noise:
    """What was measured, by the name of the tensor that is rounded or of the output."""

    activations: dict[str, Power] = field(default_factory=dict)
    outputs: dict[str, Power] = field(default_factory=dict)
    samples: int = 0


def measure_noise(file: QuantizedFile, twin: Twin, batches: Iterable[Batch], fixed: int | None) -> Noise:
    """Returns what rounding does to the tensors of a file, its nodes run as they are written.

    Args:
        file: the quantized file.
        twin: its twin.
        batches: inputs on the CPU.
        fixed: the batch size of the file, None where it is open.
    """
    measure = _Measure(file, twin)
    for batch in batches:
        for part in _parts(batch, fixed, measure):
            measure.add(part)
    return measure.found


def _parts(batch: Batch, fixed: int | None, measure: _Measure) -> Iterable[Batch]:
    if fixed is not None:
        yield from (rows(batch, range(start, start + fixed)) for start in range(0, batch.size, fixed))
        return
    start = 0
    while start < batch.size:
        size = measure.at_once or 1
        yield rows(batch, range(start, min(start + size, batch.size)))
        start += size


class _Measure:
    def __init__(self, file: QuantizedFile, twin: Twin) -> None:
        graph = file.model.graph
        self._given = [value.name for value in graph.input]
        self._own = [value.name for value in graph.output]
        self._activations, self._twin = file.activations, twin
        inner = [name for one in file.activations for name in (one.name, one.result) if name]
        self._rounded = self._open(file.model, inner)
        self._exact = self._open(twin.model, [twin.values[one.result] for one in file.activations if one.result])
        self._reaches = _reaches(file, twin.cut)
        self.found = Noise()
        self.at_once = 0  # so many samples, once it is known how much one takes

    def add(self, batch: Batch) -> None:
        given = tensors(batch)
        rounded, exact = self._values(self._rounded, given), self._values(self._exact, given)
        if not self.at_once:
            size = sum(array.nbytes for array in (*rounded.values(), *exact.values())) / batch.size
            self.at_once = max(1, int(_BYTES_AT_ONCE / max(size, 1)))
        for name in self._own:
            if rounded[name].dtype.kind == "f":
                self.found.outputs.setdefault(name, Power()).add(exact[name], rounded[name])
        for one in self._activations:
            power = self.found.activations.setdefault(one.name, Power())
            values = rounded[one.name].clip(*self._reaches[one.name])
            low, high = one.grid.ends(values)
            slack = _BEYOND * (high - low)
            power.add_clipped((values > high + slack) | (values < low - slack), batch.size)
            if one.result:
                power.add(exact[self._twin.values[one.result]], rounded[one.result])
        self.found.samples += batch.size

    def _open(self, model: ModelProto, names: Sequence[str]) -> Session:
        known = {*self._given, *self._own}
        return open_session(
            with_outputs(model, [name for name in dict.fromkeys(names) if name not in known]), "cpu", "off"
        )

    def _values(self, session: Session, given: list[Tensor]) -> dict[str, Array]:
        feeds = session.feeds(given)
        return {**feeds, **session(feeds)}


def _reaches(file: QuantizedFile, cut: frozenset[str]) -> dict[str, tuple[float, float]]:
    """By activation, between which values the network tells values apart: what a ReLU or Clip cuts is no loss."""
    graph = file.model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    found = {one.name: (0.0 if one.name in cut else -math.inf, math.inf) for one in file.activations}
    for one in file.activations:
        readers = [node for node in graph.node if one.result and one.result in node.input]
        ends = [_ends(node, constants) for node in readers]
        if ends and one.result not in {value.name for value in graph.output}:
            low, high = found[one.name]
            found[one.name] = max(low, min(end[0] for end in ends)), min(high, max(end[1] for end in ends))
    return found


def _ends(node: NodeProto, constants: dict[str, TensorProto]) -> tuple[float, float]:
    from onnx import numpy_helper

    if node.op_type == "Relu":
        return 0.0, math.inf
    names = [*node.input[1:3], "", ""][:2]
    if node.op_type != "Clip" or any(name and name not in constants for name in names):
        return -math.inf, math.inf
    low, high = (float(numpy_helper.to_array(constants[name]).item()) if name else math.nan for name in names)
    return (-math.inf if math.isnan(low) else low), (math.inf if math.isnan(high) else high)


@dataclass(frozen=True)
class Region:
    """What lies between rounded tensors: the nodes that make one of others."""

    made: str  # the rounded tensor, or the output
    reads: tuple[str, ...]  # the rounded tensors that it is made of
    weights: tuple[str, ...]  # values of rounded constants that are read on the way
    node: str  # the last node, for a person


def regions_of(file: QuantizedFile) -> list[Region]:
    """Returns, for every rounded tensor and every output, what it is made of."""
    graph = file.model.graph
    made = {name: node for node in graph.node for name in node.output if name}
    activations = {one.result: one.name for one in file.activations if one.result}
    weights = {one.result for one in file.weights}
    found = []
    for name in dict.fromkeys([*(one.name for one in file.activations), *(value.name for value in graph.output)]):
        left, seen, reads, constants = [name], set[str](), list[str](), list[str]()
        if activations.get(name):  # an output that is rounded itself: it is that tensor
            continue
        while left:
            at = left.pop()
            if at in seen:
                continue
            seen.add(at)
            if at in activations and at != name:
                reads.append(activations[at])
            elif at in weights:
                constants.append(at)
            elif at in made:
                left += made[at].input
        node = made.get(name)
        text = f"{node.op_type} {node.name or name}" if node is not None else ""
        found.append(Region(name, tuple(reads), tuple(constants), text))
    return found


def fall(region: Region, noise: Noise) -> float | None:
    """Returns by how many dB signal to noise falls from the worst tensor that is read to the one that is made.

    None where none is read, as of an input of the network, or one has no noise.
    """
    powers = {**noise.outputs, **noise.activations}
    before = [powers[name].sqnr for name in region.reads if name in powers]
    after = powers[region.made].sqnr if region.made in powers else math.inf
    if not before or not math.isfinite(after) or not math.isfinite(min(before)):
        return None
    return min(before) - after
