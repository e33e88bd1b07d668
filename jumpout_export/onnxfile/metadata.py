"""What a file says about itself in its metadata: the keys that more than one step knows, and how they are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from jumpout_export.report import FoldedLayer

if TYPE_CHECKING:
    from onnx import ModelProto

# Before the name of every entry that is written here.
PREFIX = "jumpout_export."
# The sha256 of the data file, so that the hash of the file covers both.
DATA_SHA256 = f"{PREFIX}data_sha256"
# In a file whose type is another than the model's.
DTYPE = f"{PREFIX}dtype"
# What became of each stochastic layer, and what is known of BatchNorm.
FOLDED, BATCHNORM = f"{PREFIX}folded", f"{PREFIX}batchnorm"
# Before the name of an output, how exact it has to be.
TOLERANCE = f"{PREFIX}tolerance."
# In a file that is random on purpose (Monte-Carlo dropout): which nodes draw, and where that was allowed.
RANDOM = f"{PREFIX}random"
# In a file that breaks on larger or smaller inputs than it was verified on: where, and at which node.
MAGNITUDES = f"{PREFIX}magnitudes"

# In a quantized file: how it was made and judged.
QUANTIZED = f"{PREFIX}quantized"


def entries(model: ModelProto) -> dict[str, str]:
    """Returns the entries that were written here, key to value; those of others are not among them."""
    return {entry.key: entry.value for entry in model.metadata_props if entry.key.startswith(PREFIX)}


def add_entries(path: Path, model: ModelProto, new: Mapping[str, str]) -> None:
    """Writes further entries into the metadata of the file at `path`, which was read as `model`; nothing else."""
    for key, value in new.items():
        model.metadata_props.add(key=key, value=value)
    if new:
        path.write_bytes(model.SerializeToString(deterministic=True))


def describe_layers(layers: Iterable[FoldedLayer]) -> str:
    """Returns what became of each stochastic layer, as one line."""
    lines = [f"{layer.path or '.'}: {layer.kind}({layer.settings}) -> {layer.action}" for layer in layers]
    return "; ".join(lines) or "none"
