"""What no value shows of a saved file: whether its constants are the model's weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from jumpout_export.model.batches import Batch
from jumpout_export.model.norms import statistics_owners
from jumpout_export.model.operations import record
from jumpout_export.model.probes import rows
from jumpout_export.model.run import sharing_copy
from jumpout_export.onnxfile.computed import Reads
from jumpout_export.onnxfile.load import load_onnx
from jumpout_export.onnxfile.numbers import Number, numbers_in
from jumpout_export.onnxfile.steps import steps_of
from jumpout_export.onnxfile.tables import constants_in
from jumpout_export.report import Check, counted
from jumpout_export.text import first_line, joined, some_of
from jumpout_export.verify.constants.batchnorms import Located, constants_check, locate_batchnorms
from jumpout_export.verify.constants.faults import Fault, faults_of
from jumpout_export.verify.constants.hidden import hidden_behind_zeros
from jumpout_export.verify.constants.known import Recorded
from jumpout_export.verify.constants.nodes import Groups
from jumpout_export.verify.constants.numbers import differing, unexplained
from jumpout_export.verify.constants.places import misplaced
from jumpout_export.verify.constants.turned import squares, turned
from jumpout_export.verify.constants.weights import find_weights

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass
class Constants:
    """The verdicts on a file's constants, and what they rest on."""

    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    located: list[Located] = field(default_factory=list)  # what the file has for the BatchNorms
    faults: list[Fault] = field(default_factory=list)  # layers whose constants are wrong, in the order of the forward
    numbers: list[Number] = field(default_factory=list)  # of the file, that the program has not
    lost: list[Number] = field(default_factory=list)  # of the file that the model was read from, that the file has not


def prove_constants(
    path: Path,
    model: nn.Module,
    batch: Batch,
    size: int | None,
    file: ModelProto | None = None,
    others: Sequence[Number] | None = None,
) -> Constants:
    """Returns whether the constants of a file are those of a model.

    Args:
        path: the file; external data is read from its folder.
        model: in eval mode, on the CPU; a copy of it is run once.
        batch: inputs on the CPU.
        size: the file's batch size, None where it is open.
        file: the protobuf, where it has been read.
        others: numbers of the file that the model was read from, if it was.
    """
    result = Constants()
    samples = rows(batch, range(min(2, batch.size) if size is None else size))
    recorded = recorded_run(model, samples)
    try:
        file = load_onnx(path) if file is None else file
        if recorded.recording is not None:
            result.located = locate_batchnorms(recorded.recording, path, file)
        elif statistics_owners(model):
            result.notes.append(f"the BatchNorm constants could not be looked for in the file: {recorded.problem}")
        reads = Reads(file, str(path.parent))
        constants = constants_in(reads, str(path.parent))
        weights = find_weights(constants, model, recorded, result.located)
        if recorded.recording is not None and recorded.run is not None:
            steps, square = steps_of(reads), squares(weights.held)
            groups = Groups(weights.held, result.located)
            weights.misplaced, weights.unplaced = misplaced(recorded.recording, groups, steps)
            arrays = {one.name: one.values() for one in constants if one.name in square}
            weights.misplaced += turned(recorded.recording, recorded.run, weights.held, arrays, steps)
        numbers = numbers_in(reads)
        result.numbers = unexplained(numbers, recorded)
        if others is not None:
            result.numbers, result.lost = differing(result.numbers, others), differing(others, numbers)
    except Exception as error:  # a file may hold anything
        result.checks = [counted("weights", [f"the weights could not be looked for in the file: {first_line(error)}"])]
        return result
    checks = constants_check(model, result.located), weights.check(recorded.problem)
    result.checks = [check for check in checks if check is not None]
    if recorded.recording is not None:
        result.faults = faults_of(recorded.recording, result.located, weights)
        own = {**dict(recorded.run.named_parameters()), **dict(recorded.run.named_buffers())} if recorded.run else {}
        zeros = hidden_behind_zeros(recorded.recording, own)
        if zeros:
            named = some_of([f"`{name}`" for name in zeros], 3)
            result.notes.append(
                f"shown by its weights alone: what is multiplied with {named}, which is zero throughout"
            )
    unshown = weights.unshown()
    if unshown:
        result.notes.append(f"not shown to be the model's, known by the outputs alone: {joined(unshown)}")
    return result


def recorded_run(model: nn.Module, batch: Batch) -> Recorded:
    """Returns what a copy of the model did on a batch, or why that cannot be told."""
    made: dict[int, Tensor] = {}
    try:
        run = sharing_copy(model)
        return Recorded(record(run, batch, constants=made), made, run)
    except Exception as error:  # the user's forward may raise anything
        return Recorded(problem=first_line(error))
