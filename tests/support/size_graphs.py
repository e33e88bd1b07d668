"""Small graphs of ONNX in which a size may decide something."""

import numpy as np

from jumpout_export.onnxfile.flow.uses import size_uses
from support.onnx_files import parsed

CONSTANTS = {
    "k": np.int64(16),
    "one": np.float32(1),
    "two": np.float32(2),
    "zero": np.int64(0),
    "step": np.int64(1),
    "first": np.array([0]),
    "last": np.array([-1]),
    "nothing": np.float32(0),
}


def model(body, out="float[n,8] y", functions="", **more):
    header = '<ir_version: 10, opset_import: ["": 18, "local": 1]>'
    graph = f"g (float[n,8] x) => ({out}) {{ {body} }}"
    return parsed(f"{header}\n{graph}\n{functions}", {**CONSTANTS, **more}, check=False)


def uses(proto, opened=({0: "batch"},), known=None):
    return size_uses(proto, opened, {"batch": 2} if known is None else known, "batch")


def tried(proto, *more):
    return {size for use in uses(proto, *more) for size in use.sizes}


SIZE = "s = Shape (x) n = Gather (s, zero) "
FACTOR = " f = Where (b, two, one) y = Mul (x, f)"
