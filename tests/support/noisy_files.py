"""ONNX files with noise in them, built node by node, and what a fold makes of them."""

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from jumpout_export.fold.file.fold_file import fold_onnx

FLOAT, BOOL, INT64 = TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64
OPSET = [helper.make_opsetid("", 18)]


def run(path, *arrays):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {value.name: array for value, array in zip(session.get_inputs(), arrays, strict=True)})


def folded(model, tmp_path, name="out.onnx", **options):
    path = tmp_path / "in.onnx"
    path.write_bytes(model.SerializeToString())
    return fold_onnx(path, tmp_path / name, **options)


def value(name, shape=("n", 4), kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def tensor(values, name, kind=np.float32):
    return numpy_helper.from_array(np.asarray(values, dtype=kind), name)


def node(op, inputs, output, **attributes):
    outputs = output.split()
    return helper.make_node(op, inputs.split(), outputs, name=f"{op}_{outputs[0]}", **attributes)


CONSTANTS = [
    tensor(True, "true", np.bool_), tensor(False, "false", np.bool_), tensor(0.3, "0.3"), tensor(0.7, "0.7"),
    tensor(0.5, "0.5"), tensor(0, "0"), tensor(1, "1"), tensor(2, "2"), tensor(1 / 0.7, "1/0.7"),
    tensor(0.7**-0.75, "0.7^-0.75"), tensor(1.2, "1.2"), tensor(-0.5, "-0.5"), tensor(-1, "-1"),
    tensor(np.eye(4), "w"),
]  # fmt: skip


def graph_model(nodes, inputs=(), outputs=(), constants=(), opset=18, functions=(), shape=("n", 4), more=()):
    """`nodes` compute z from r, which is relu(x w); y = z w."""
    nodes = [node("MatMul", "x w", "h"), node("Relu", "h", "r"), *nodes, node("MatMul", "z w", "y")]
    graph = helper.make_graph(
        nodes, "g", [value("x", shape), *inputs], [value("y", shape), *outputs], [*CONSTANTS, *constants]
    )
    opsets = [helper.make_opsetid("", opset), *more]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=list(functions))
    used = {name for part in graph.node for name in part.input} | {
        name for part in in_subgraphs(graph) for name in part.input
    }
    for index in reversed(range(len(model.graph.initializer))):
        if model.graph.initializer[index].name not in used:
            del model.graph.initializer[index]
    return model


def in_subgraphs(graph):
    for part in graph.node:
        for attribute in part.attribute:
            if attribute.HasField("g"):
                yield from attribute.g.node
                yield from in_subgraphs(attribute.g)


def mask(scale="Div", by="0.7", compare=("Less", "u 0.7"), like="r"):
    return [
        node("RandomUniformLike", like, "u"),
        node(compare[0], compare[1], "b"),
        node("Cast", "b", "m", to=FLOAT),
        node("Mul", "r m", "rm"),
        node(scale, f"rm {by}", "z"),
    ]


def dropout(flag="true", x="r", y="z"):
    return node("Dropout", f"{x} 0.3 {flag}", y)


ADDED_NOISE = [node("RandomNormalLike", "r", "n"), node("Mul", "n 0.3", "s"), node("Add", "r s", "z")]
