"""Copies of a model whose inner values are outputs, so that a session gives them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto


def with_outputs(model: ModelProto, names: Iterable[str]) -> ModelProto:
    """Returns a copy of the model whose values of these names are outputs, too, behind its own.

    What the file says of inner shapes is dropped: it may say what another session checks.
    """
    from onnx import helper

    marked = type(model)()
    marked.CopyFrom(model)
    del marked.graph.value_info[:]
    marked.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    return marked
