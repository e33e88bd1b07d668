"""ONNX models for tests, written in ONNX's text form (https://onnx.ai/onnx/repo-docs/Syntax.html).

    model = parsed("g (float[n,4] x) => (float[n,4] y) <float half = {0.5}> { y = Dropout(x, half) }")
    path = saved(model, tmp_path / "model.onnx")

A node's name stands before it in brackets (`[drop] y = Dropout(x)`), its attributes behind the operator
(`Cast<to = 1>(x)`), a subgraph is an attribute (`then_branch = then () => (float[n,4] t) { t = Relu(x) }`), functions
follow the graph behind a header of their own (`<domain: "local", opset_import: ["": 18]> Block (a) => (b) {...}`).
Values in the text are kept as `float_data` and the like, those given as arrays as `raw_data`.
"""

from pathlib import Path

import numpy as np
import onnx
import onnx.checker
import onnx.parser
from onnx import numpy_helper

HEADER = '<ir_version: 10, opset_import: ["" : 18]>'
"""What a text without a header gets."""


def parsed(text: str, weights: dict[str, np.ndarray] | None = None, *, check: bool = True) -> onnx.ModelProto:
    """The model that a text describes.

    Args:
        text: with a header `<ir_version: 10, opset_import: ["" : 18]>`, or without one: then it gets this one.
        weights: initializers whose values are easier computed than written; they replace those of the same name.
        check: whether ONNX's checker must accept the model; False for one that is wrong on purpose.
    """
    model = onnx.parser.parse_model(text if text.lstrip().startswith("<") else f"{HEADER}\n{text}")
    for name, array in (weights or {}).items():
        for known in [tensor for tensor in model.graph.initializer if tensor.name == name]:
            model.graph.initializer.remove(known)
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    if check:
        onnx.checker.check_model(model)
    return model


def saved(model: onnx.ModelProto | str, path: Path) -> Path:
    """Writes a model, or what a text describes, to `path`, and returns the path."""
    path.write_bytes((parsed(model) if isinstance(model, str) else model).SerializeToString())
    return path


def shapes(path: Path) -> dict[str, list]:
    """The declared shape of each input and output of a file, names of axes included."""
    graph = onnx.load(path, load_external_data=False).graph
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
