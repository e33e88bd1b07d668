"""A Triton model repository as Triton's own message types read it, and what a server would make of a request."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from google.protobuf import text_format

# Of Triton's documentation, "Datatypes"; NumPy has no bfloat16, and strings are objects.
NUMPY = {
    "TYPE_BOOL": np.bool_,
    "TYPE_UINT8": np.uint8,
    "TYPE_UINT16": np.uint16,
    "TYPE_UINT32": np.uint32,
    "TYPE_UINT64": np.uint64,
    "TYPE_INT8": np.int8,
    "TYPE_INT16": np.int16,
    "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64,
    "TYPE_FP16": np.float16,
    "TYPE_FP32": np.float32,
    "TYPE_FP64": np.float64,
}


@functools.cache
def messages():
    """tritonclient's module of the model configuration, without the package around it, which wants gRPC."""
    file = Path(importlib.util.find_spec("tritonclient").origin).parent / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse(text):
    """The configuration in a text; raises google.protobuf.text_format.ParseError for what is none."""
    return text_format.Parse(text, messages().ModelConfig())


def type_name(tensor):
    """Its type, such as TYPE_FP32."""
    return messages().DataType.Name(tensor.data_type)


def model_of(entry: Path) -> Path:
    """The file that Triton's ONNX Runtime backend opens: model.onnx, or one of that name in a folder of that name."""
    model = entry / "1" / "model.onnx"
    return model / "model.onnx" if model.is_dir() else model


def differences(config, model: onnx.ModelProto) -> list[str]:
    """What keeps Triton from serving a file under a configuration, or from serving all of it; empty if nothing does."""
    found = []
    if (config.platform, config.backend) != ("onnxruntime_onnx", "onnxruntime"):
        found.append(f"platform {config.platform}, backend {config.backend}")
    batched = config.max_batch_size > 0
    if config.HasField("dynamic_batching") != batched:
        found.append("dynamic batching and max_batch_size do not go together")
    for kind, declared, tensors in (
        ("input", config.input, model.graph.input),
        ("output", config.output, model.graph.output),
    ):
        if [one.name for one in declared] != [one.name for one in tensors]:
            found.append(f"{kind} names {[one.name for one in declared]}")
            continue
        for one, tensor in zip(declared, tensors, strict=True):
            what = f"{kind} {one.name}"
            if NUMPY[type_name(one)] != onnx.helper.tensor_dtype_to_np_dtype(tensor.type.tensor_type.elem_type):
                found.append(f"{what} is {type_name(one)}")
            if not one.dims or any(size == 0 or size < -1 for size in one.dims):
                found.append(f"{what} has dims {list(one.dims)}")
            if one.HasField("reshape") and not batched and not one.reshape.shape:
                found.append(f"{what} has an empty reshape and no batch")
            seen = list(one.reshape.shape if one.HasField("reshape") else one.dims)
            axes = tensor.type.tensor_type.shape.dim
            own = [-1 if axis.dim_param or not axis.HasField("dim_value") else axis.dim_value for axis in axes]
            if seen != (own[1:] if batched else own or [1]) or (batched and own[:1] != [-1]):
                found.append(f"{what} is {seen} there and {own} in the file")
    return found


def answer(entry: Path, batch: int, open_size: int) -> None:
    """Does with a request what Triton does, and asserts that the answers have the shapes that the configuration says.

    Args:
        entry: folder of the model in the repository.
        batch: samples of the request, if requests share batches.
        open_size: of every axis that is -1.
    """
    config = parse((entry / "config.pbtxt").read_text())
    session = onnxruntime.InferenceSession(model_of(entry), providers=["CPUExecutionProvider"])
    own = {value.name: value.shape for value in session.get_inputs()}
    rows = [batch] if config.max_batch_size else []
    feeds = {}
    for one in config.input:
        request = np.zeros([*rows, *(open_size if size == -1 else size for size in one.dims)], NUMPY[type_name(one)])
        shape = [*rows, *one.reshape.shape] if one.HasField("reshape") else request.shape
        feeds[one.name] = request.reshape(shape if own[one.name] else ())
    results = session.run([one.name for one in config.output], feeds)
    for one, result in zip(config.output, results, strict=True):
        given = result.reshape([*rows, *one.dims]) if one.HasField("reshape") else result.reshape(result.shape or (1,))
        assert result.dtype == NUMPY[type_name(one)]
        assert given.ndim == len(rows) + len(one.dims)
        assert list(given.shape[: len(rows)]) == rows
        assert all(size in (-1, found) for size, found in zip(one.dims, given.shape[len(rows) :], strict=True))
