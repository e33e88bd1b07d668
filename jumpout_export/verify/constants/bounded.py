"""Tables of embeddings with a `max_norm`: every forward shortens the rows that it reads, in the table itself.

So a file that was written before a forward holds longer rows than the model has after it, and both compute the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from jumpout_export.model.operations import Recording
from jumpout_export.onnxfile.constants import Array
from jumpout_export.onnxfile.tables import Constant
from jumpout_export.tolerances import ROUNDINGS
from jumpout_export.verify.constants.matches import Known, same_values

# Added to a row's norm by torch (aten/src/ATen/native/Embedding.cpp, embedding_renorm_).
_EPSILON = 1e-7


def bounded_tables(recording: Recording) -> Iterator[tuple[str, float, float]]:
    """Yields name, largest norm and order of the norm of the tables that a forward shortens."""
    for index, operation in enumerate(recording.operations):
        if operation.name.startswith("aten.embedding_renorm_."):
            _, _, largest, order = operation.arguments
            yield from ((name, float(largest), float(order)) for name in recording.read_directly(index))


def same_when_bounded(constant: Constant, table: Known, largest: float, order: float) -> bool:
    """Returns whether a constant and a table have the same rows once those that are too long are shortened."""
    if constant.dims != table.array.shape:
        return False
    rows = constant.values()
    got, wanted = (_bounded(one.reshape(table.array.shape), largest, order) for one in (rows, table.array))
    return bool(same_values(got.astype(rows.dtype).reshape(-1), wanted.reshape(-1), ROUNDINGS).all())


def _bounded(rows: Array, largest: float, order: float) -> Array:
    norms = np.linalg.norm(rows.astype(np.float64), ord=order, axis=1, keepdims=True)
    shortened: Array = rows * np.where(norms > largest, largest / (norms + _EPSILON), 1.0)
    return shortened
