"""Mutations of files: of their bytes, of a protobuf's fields, of one file in an archive."""

from __future__ import annotations

import io
import random
import zipfile

import onnx
from onnx import TensorProto

TEXTS = (b"Dropout", b"RandomNormal", b"Relu", b"x", b"r", b"true", b"/etc/hostname", b"../x")
OPERATORS = ("Relu", "Dropout", "Add", "Mul", "Identity", "Loop", "Conv", "RandomNormalLike", "Neg", "Sub")


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One to three changes: bits, bytes, pieces left out, doubled, moved, or the end cut off."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        start = rng.randrange(len(out)) if out else 0
        stop = min(len(out), start + rng.choice((1, 1, 2, 4, 8, 64)))
        match rng.randrange(8):
            case 0:
                out[start:stop] = bytes(byte ^ (1 << rng.randrange(8)) for byte in out[start:stop])
            case 1:
                out[start:stop] = rng.randbytes(stop - start)
            case 2:
                del out[start:stop]
            case 3:
                out[start:start] = rng.randbytes(stop - start)
            case 4:
                out[start:stop] = bytes([rng.choice((0, 0x7F, 0x80, 0xFF))]) * (stop - start)
            case 5:
                piece = out[start:stop]
                place = rng.randrange(len(out) + 1)
                out[place:place] = piece
            case 6:
                out = out[:start]
            case 7:
                text = rng.choice(TEXTS)
                out[start : start + len(text)] = text
    return bytes(out)


def restructured(data: bytes, rng: random.Random) -> bytes:
    """A change of the protobuf's fields, so that the file stays readable."""
    model = onnx.ModelProto.FromString(data)
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    nodes += [n for node in model.graph.node for attribute in node.attribute for n in attribute.g.node]
    node, tensor = rng.choice(nodes), rng.choice(model.graph.initializer)
    names = [name for n in nodes for name in (*n.input, *n.output)] + [tensor.name, "", "nowhere"]
    match rng.randrange(12):
        case 0:
            node.op_type = rng.choice(OPERATORS)
        case 1 if node.input:
            node.input[rng.randrange(len(node.input))] = rng.choice(names)
        case 2 if node.output:
            node.output[rng.randrange(len(node.output))] = rng.choice(names)
        case 3:
            node.domain = rng.choice(("ai.onnx.ml", "com.microsoft", "local", "nobody", "ai.onnx"))
        case 4:
            tensor.dims[:] = rng.choices((0, 1, 3, 5, -1, 1 << 20, 1 << 40, (1 << 63) - 1), k=rng.randrange(4))
        case 5:
            tensor.data_type = rng.randrange(30)
        case 6:
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            place = rng.choice(("../x", "/etc/hostname", "weights", "a\0b", "last"))
            tensor.external_data.add(key="location", value=place)
            tensor.external_data.add(key=rng.choice(("offset", "length")), value=rng.choice(("-1", "x", str(1 << 62))))
        case 7:
            axes = model.graph.input[0].type.tensor_type.shape.dim
            rng.choice(axes).dim_value = rng.choice((0, -5, 1 << 40, 2, 6))
        case 8:
            model.opset_import[0].version = rng.choice((-1, 0, 1, 6, 7, 13, 17, 22, 30, 1 << 40))
        case 9:
            del model.graph.node[rng.randrange(len(model.graph.node))]
        case 10:
            copy = onnx.NodeProto.FromString(node.SerializeToString())
            model.graph.node.add().CopyFrom(copy)
        case 11:
            attribute = node.attribute.add(name=rng.choice(("transB", "training_mode", "to", "axis", "seed")))
            attribute.type, attribute.i = rng.randrange(14), rng.choice((0, 1, -1, 1 << 40))
    return model.SerializeToString()


def with_changed_entry(data: bytes, rng: random.Random) -> bytes:
    """The archive with one of its files mutated and every checksum right."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(stream, "w") as after:
        names = before.namelist()
        model = next(name for name in names if name.endswith("models/model.json"))
        chosen = rng.choice((model, model, rng.choice(names)))
        for name in names:
            content = before.read(name)
            after.writestr(name, mutated(content, rng) if name == chosen else content)
    return stream.getvalue()
