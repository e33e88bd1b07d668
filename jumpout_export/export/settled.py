"""Which Ifs and Loops of a file still depend on its inputs, once everything that is known beforehand is worked out."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from jumpout_export.export.protos import sites

if TYPE_CHECKING:
    from onnx import ModelProto


def left_open(model: ModelProto) -> set[str]:
    """Returns the names of the nodes that are left after constants and declared sizes are folded.

    A converter that cannot know a size writes an If about it. Where the file declares that size, one branch can never
    be taken, by any input that the file accepts.

    Args:
        model: with unique names for the nodes that matter; it stays as it is.

    Raises:
        Exception: of onnx or onnxscript, where they cannot read the model.
    """
    import onnxscript.optimizer
    from onnx import shape_inference

    known = copy.deepcopy(model)
    del known.graph.value_info[:]  # nobody holds a file to these; to the sizes of its inputs ONNX Runtime does
    given = {value.name for value in known.graph.input}  # has only a default value: the caller may pass another
    kept = [tensor for tensor in known.graph.initializer if tensor.name not in given]
    del known.graph.initializer[:]
    known.graph.initializer.extend(kept)
    known = shape_inference.infer_shapes(known, data_prop=True)
    _fold_known_sizes(known.graph)
    folded = onnxscript.optimizer.optimize(known)
    return {site.node.name for site in sites(folded)}


def _fold_known_sizes(graph: Any) -> None:
    """Puts a constant in the place of every Gather of a size that is declared, which the optimizer leaves alone."""
    import numpy as np
    from onnx import helper, numpy_helper

    shapes = {value.name: value.type.tensor_type.shape.dim for value in (*graph.input, *graph.value_info)}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    of = {node.output[0]: node for node in graph.node if node.op_type == "Shape" and not node.attribute}
    for node in graph.node:
        if node.op_type != "Gather" or node.input[0] not in of or node.input[1] not in constants:
            continue
        dims = shapes.get(of[node.input[0]].input[0], [])
        index = numpy_helper.to_array(constants[node.input[1]])
        if not len(dims) or not all(-len(dims) <= i < len(dims) and dims[i].HasField("dim_value") for i in index.flat):
            continue
        sizes = np.array([dims[i].dim_value for i in index.flat], np.int64).reshape(index.shape)
        node.CopyFrom(helper.make_node("Constant", [], list(node.output), value=numpy_helper.from_array(sizes)))
