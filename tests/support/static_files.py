"""Small ONNX files built by hand, with what is forbidden in the graph, in a subgraph or in a function."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from jumpout_export.verify.inspect import inspect_onnx

OPSET = [helper.make_opsetid("", 18)]
TRUE, FALSE = (numpy_helper.from_array(np.array(value), name) for value, name in ((True, "true"), (False, "false")))
RATIO = numpy_helper.from_array(np.array(0.5, dtype=np.float32), "ratio")
SCALE = [numpy_helper.from_array(np.ones(3, dtype=np.float32), name) for name in ("scale", "bias", "mean", "var")]


def value(name, kind=TensorProto.FLOAT, shape=(2, 3)):
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(nodes, initializers=(), inputs=(), opsets=OPSET, functions=(), shape=(2, 3)):
    graph = helper.make_graph(
        list(nodes), "graph", [value("x", shape=shape), *inputs], [value("y", shape=shape)], list(initializers)
    )
    return helper.make_model(graph, opset_imports=list(opsets), ir_version=10, functions=list(functions))


def in_a_subgraph(nodes, initializers=()):
    """The same nodes inside the then-branch of an If inside the body of a Loop."""
    branch = helper.make_graph(list(nodes), "then", [], [value("y")], list(initializers))
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "else", [], [value("y")])
    branching = helper.make_node("If", ["going"], ["z"], name="inner_if", then_branch=branch, else_branch=other)
    keep = helper.make_node("Identity", ["going"], ["still"])
    body = helper.make_graph(
        [branching, keep],
        "body",
        [value("i", TensorProto.INT64, ()), value("going", TensorProto.BOOL, ()), value("state")],
        [value("still", TensorProto.BOOL, ()), value("z")],
    )
    loop = helper.make_node("Loop", ["trips", "true", "x"], ["y"], name="outer_loop", body=body)
    trips = numpy_helper.from_array(np.array(2), "trips")
    return model_of([loop], [trips, TRUE])


def in_a_function(nodes, constants=()):
    given = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in constants]
    function = helper.make_function("local", "Block", ["x"], ["y"], [*given, *nodes], OPSET)
    call = helper.make_node("Block", ["x"], ["y"], domain="local", name="call")
    return model_of([call], opsets=[*OPSET, helper.make_opsetid("local", 1)], functions=[function])


def inspected(model, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return inspect_onnx(path)


def found(report):
    return {check.name.removeprefix("file/"): check for check in report.checks if check.verdict != "pass"}


def dropout(flag="true", op="Dropout"):
    return [helper.make_node(op, ["x", "ratio", flag] if flag else ["x", "ratio"], ["y"], name="drop")]


def noise(op="RandomNormalLike", **attributes):
    return [
        helper.make_node(op, ["x"] if op.endswith("Like") else [], ["n"], name="noise", **attributes),
        helper.make_node("Add", ["x", "n"], ["y"]),
    ]


def batchnorm(**attributes):
    outputs = ["y", "m", "v"] if attributes.get("training_mode") else ["y"]
    return [helper.make_node("BatchNormalization", ["x", "scale", "bias", "mean", "var"], outputs, "bn", **attributes)]


def external(tensor, location):
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
