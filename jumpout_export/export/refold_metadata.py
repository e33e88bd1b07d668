"""What a file's metadata may still say once noise was taken out of it: nothing that is true of the older file only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jumpout_export.export.external import DATA_SHA256
from jumpout_export.export.metadata import PREFIX, RANDOM, entries
from jumpout_export.export.provenance import describe_layers
from jumpout_export.export.tolerance import PREFIX as TOLERANCE
from jumpout_export.report import FoldedLayer

if TYPE_CHECKING:
    from onnx import ModelProto

_FOLDED = f"{PREFIX}folded"
_BATCHNORM = f"{PREFIX}batchnorm"
_UNCHECKED = "not checked since noise was taken out of the file"


def correct_metadata(model: ModelProto, layers: Sequence[FoldedLayer]) -> list[str]:
    """Corrects what `export_onnx` wrote into a file that was folded since; returns a note for each kind of change.

    That it is random on purpose is not true any more. What was measured with the noise on, the tolerance of golden
    data and the verdict on BatchNorm, is not known of the file without. The layers folded now are added to those
    folded before; versions, the type and the hash of PyTorch's weights stay. A file of another exporter has none of it.

    Args:
        model: the file without its noise, changed in place.
        layers: what was folded away, empty if nothing was.
    """
    known = entries(model)
    wanted, notes = dict(known), []
    if text := wanted.pop(RANDOM, ""):
        notes.append(f"noise that was wanted is gone, the file written is deterministic; the older one says: {text}")
    if wanted.pop(DATA_SHA256, ""):
        notes.append("the hash of the weights beside the older file is removed from the metadata")
    if layers:
        measured = [key for key in wanted if key.startswith(f"{PREFIX}{TOLERANCE}")]
        for key in measured:
            del wanted[key]
        notes += ["the tolerance of golden data, measured with the noise on, is removed"] * bool(measured)
        if _FOLDED in wanted:
            before = [wanted[_FOLDED]] if wanted[_FOLDED] != describe_layers([]) else []
            wanted[_FOLDED] = "; ".join([*before, describe_layers(layers)])
        if wanted.get(_BATCHNORM, "not checked") != "not checked":
            wanted[_BATCHNORM] = _UNCHECKED
            notes.append("the verdict on BatchNorm, made with the noise on, is removed from the metadata")
    for entry in model.metadata_props:
        entry.value = wanted.get(entry.key, entry.value)
    for index in reversed(range(len(model.metadata_props))):
        if model.metadata_props[index].key in known.keys() - wanted.keys():
            del model.metadata_props[index]
    return notes
