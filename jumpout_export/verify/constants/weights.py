"""The constants of a saved file against the model's weights, value by value: also those that no image reached.

A wrong row of an embedding changes no output as long as no image asks for it. So every constant of the file is looked
for among the weights (parameters, buffers, tables of integers), bit for bit, and among what the model makes of weights
alone (a normalized weight, a mask), to ROUNDINGS eps; as it is or with the last two axes swapped. One that is none of
these, and has most of its values in common with one, or the name of a weight, is wrong. Weights that are nowhere are
part of another constant, or not used: they are named, only the outputs say something about them. Those that a BatchNorm
is folded into are the subject of `constants.py`.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor, nn

from jumpout_export.model.batches import Batch
from jumpout_export.model.norms import statistics_owners
from jumpout_export.model.operations import record
from jumpout_export.onnxfile.constants import Array
from jumpout_export.onnxfile.load import load_onnx
from jumpout_export.onnxfile.walk import tensors
from jumpout_export.report import Check, counted
from jumpout_export.text import first_line, joined
from jumpout_export.verify.constants.batchnorms import Located
from jumpout_export.verify.constants.matches import Constant, Known, candidates_of, matches

# Shorter lists of integers are shapes and axes.
SHORTEST_TABLE = 32


def weights_check(path: Path, model: nn.Module, batch: Batch, located: Iterable[Located] = ()) -> Check | None:
    """Returns whether the constants of the file are the weights of the model; None for a model without weights.

    Args:
        path: the file; external data is read from its folder.
        model: in eval mode, on the CPU; a copy of it is run.
        batch: images on the CPU.
        located: what the file has for the BatchNorms of the model.
    """
    try:
        known, all_known = known_values(model, batch, list(located))
        return _compared(_constants(path), known, all_known)
    except Exception as error:  # a file may hold anything
        return counted("weights", [f"the weights could not be looked for in the file: {first_line(error)}"])


def known_values(model: nn.Module, batch: Batch, located: list[Located]) -> tuple[list[Known], bool]:
    """Returns the weights and what the model makes of them, and whether that is all a right file may hold."""
    made: list[Tensor] = []
    elsewhere = set()
    all_known = True
    try:
        recording = record(copy.deepcopy(model), batch, constants=made)
    except Exception:  # the user's forward may raise anything
        all_known = False
    else:
        folded = [one.layer for one in located if one.layer is not None]
        elsewhere = {name for index in folded for name in recording.operations[index].weights}
    prefixes = tuple(f"{name}." for name in statistics_owners(model))
    # A BatchNorm that was not found may be part of any layer, whose constants may have kept their names.
    names_tell = all(one.where for one in located)
    known = [
        Known(name, _array(tensor), name not in elsewhere and not name.startswith(prefixes or ("\0",)), names_tell)
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        if _counts(tensor)
    ]
    return [*known, *(Known("", _array(tensor)) for tensor in made if _counts(tensor))], all_known


def _counts(tensor: Tensor) -> bool:
    return tensor.numel() >= (1 if tensor.is_floating_point() else SHORTEST_TABLE) and not tensor.is_complex()


def _array(tensor: Tensor) -> Array:
    tensor = tensor.detach()
    array: Array = (tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor).numpy(
        force=True
    )
    return array


def _constants(path: Path) -> list[Constant]:
    from onnx import TensorProto

    kinds = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE}
    tables = {TensorProto.INT64, TensorProto.INT32, TensorProto.INT16, TensorProto.INT8, TensorProto.UINT8}
    return [
        constant
        for tensor in tensors(load_onnx(path))
        if tensor.data_type in kinds | tables | {TensorProto.BOOL}
        and (constant := Constant(tensor, str(path.parent))).size
        >= (1 if tensor.data_type in kinds else SHORTEST_TABLE)
    ]


def _compared(constants: list[Constant], known: list[Known], all_known: bool) -> Check | None:
    weights = [one.name for one in known if one.name and one.judged]
    if not weights:
        return None
    by_size: dict[int, list[Known]] = defaultdict(list)
    for one in known:
        by_size[one.array.size].append(one)
    candidates = {size: candidates_of(by_size[size]) for size in {one.size for one in constants} & by_size.keys()}
    found: set[str] = set()
    wrong: dict[str, str] = {}
    for constant in constants:
        names, nearest, any_equal = matches(constant, candidates.get(constant.size, []))
        found |= names
        if nearest is not None and not any_equal and all_known:
            wrong[nearest[1]] = nearest[0]
    unseen = [f"`{name}`" for name in weights if name not in found and name not in wrong.values()]
    text = f"{sum(name in found for name in weights)} of {len(weights)} weights are in the file bit for bit"
    note = "; ".join([*([joined(list(wrong))] if wrong else []), text])
    note += f"; known by the outputs alone: {joined(unseen)}" if unseen else ""
    return Check(name="weights", measured=len(wrong), limit=0, verdict="fail" if wrong else "pass", note=note)
