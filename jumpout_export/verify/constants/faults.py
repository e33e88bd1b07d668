"""Wrong constants as the layers that they belong to, in the order in which the model runs them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from jumpout_export.model.operations import Recording
from jumpout_export.verify.constants.batchnorms import ROOT, Located
from jumpout_export.verify.constants.weights import Weights


@dataclass(frozen=True)
class Fault:
    """A layer whose constants in a file are not those of the model."""

    layer: str  # module path, `.` for the model itself
    operation: int  # the first of the recording that reads them
    text: str  # what is wrong with them, for a person


def faults_of(recording: Recording, located: Iterable[Located], weights: Weights) -> list[Fault]:
    """Returns the layers whose constants are wrong, in the order in which the model runs them.

    Where none is known to be wrong, those whose weights are nowhere while something else of their size is in the file.
    """
    faults = [
        Fault(one.path or ROOT, one.operation if one.layer is None else one.layer, "")
        for one in located
        if one.where and one.wrong
    ]
    faults += [_fault(recording, one.known.weights, one.text, one.known.operation) for one in weights.wrong]
    faults += [_fault(recording, one.weights, one.text) for one in weights.misplaced]
    if not faults:
        faults = [
            _fault(
                recording, (one.name,), f"`{one.name}` is not in the file, which has `{others[0].name}` of that size"
            )
            for one in weights.missing
            if (others := weights.replaced(one))
        ]
    return sorted(faults, key=lambda fault: fault.operation)


def owner_of(weights: Iterable[str]) -> str | None:
    """Returns the path of the module that has all of these weights, None if they belong to several."""
    owners = {name.rpartition(".")[0].split(".parametrizations")[0] for name in weights}
    return next(iter(owners)) if len(owners) == 1 else None


def _fault(recording: Recording, names: tuple[str, ...], text: str, made_by: int | None = None) -> Fault:
    operations = recording.operations
    readers = [index for index, one in enumerate(operations) if one.from_data and set(names) & set(one.weights)]
    first = next(iter(readers), made_by)
    owner, reader = owner_of(names), operations[first].module if first is not None else ""
    # A tensor of a file lies in no layer, whatever its name is, and one of another layer is read where it is read.
    if owner is None or (reader and not f"{owner}.".startswith(f"{reader}.")):
        owner = reader
    return Fault(owner or ROOT, len(operations) if first is None else first, text)
