"""What a file says about itself in its metadata: the keys that more than one step knows, and how they are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto

# Before the name of every entry that is written here.
PREFIX = "jumpout_export."
# In a file that is random on purpose (Monte-Carlo dropout): which nodes draw, and where that was allowed.
RANDOM = f"{PREFIX}random"


def entries(model: ModelProto) -> dict[str, str]:
    """Returns the entries that were written here, key to value; those of others are not among them."""
    return {entry.key: entry.value for entry in model.metadata_props if entry.key.startswith(PREFIX)}
