"""The text of a Triton model configuration, as Triton's own message types read it."""

from __future__ import annotations

import onnx
import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from support.model_repository import differences, parse, type_name
from support.onnx_files import parsed

from jumpout_export.errors import ArgumentError
from jumpout_export.export.triton_config import MAX_BATCH_SIZE, configuration
from jumpout_export.model.probes import sizes_to_try

DIGEST = "0123456789abcdef" * 4
TWO = (
    "g (float[batch,3,height,8] image, int64[batch] index) => (float[batch,height] y, float[batch] score) "
    "{y = ReduceSum<keepdims = 0>(image, axes) score = Cast<to = 1>(index)}"
)


def configured(model, verified=("cpu",), name="net"):
    model = parsed(model, check=False) if isinstance(model, str) else model
    return configuration(model, name, DIGEST, verified)


def tensor_model(element, shape=("batch", 2), name="x"):
    """A model of one input and output of a type."""
    tensors = [helper.make_tensor_value_info(name, element, shape), helper.make_tensor_value_info("y", element, shape)]
    graph = helper.make_graph([helper.make_node("Identity", [name], ["y"])], "g", tensors[:1], tensors[1:])
    return helper.make_model(graph)


def test_what_begins_with_the_open_batch_is_served_in_batches():
    done = configured(TWO)
    config = parse(done.text)
    assert done.unbatched == ""
    assert differences(config, parsed(TWO, check=False)) == []
    assert (config.name, config.platform, config.backend) == ("net", "onnxruntime_onnx", "onnxruntime")
    assert config.max_batch_size == MAX_BATCH_SIZE
    assert config.HasField("dynamic_batching")
    assert [list(one.dims) for one in config.input] == [[3, -1, 8], [1]]
    assert [list(one.dims) for one in config.output] == [[-1], [1]]
    # One value per sample: Triton allows no empty dims, and gives the model what it reshapes to.
    assert [one.HasField("reshape") for one in (*config.input, *config.output)] == [False, True, False, True]
    assert list(config.input[1].reshape.shape) == list(config.output[1].reshape.shape) == []
    assert {key: value.string_value for key, value in config.parameters.items()} == {"jumpout_export.sha256": DIGEST}


def test_no_batch_is_larger_than_those_that_every_file_was_compared_at():
    assert all(max(sizes_to_try(example)) >= MAX_BATCH_SIZE for example in (1, 2, 100))


@pytest.mark.parametrize(
    ("text", "reason", "dims"),
    [
        (
            "g (float[8,3] x) => (float[8,3] y) {y = Relu(x)}",
            "the first axis of input `x` has a fixed size, 8",
            [[8, 3], [8, 3]],
        ),
        (
            "g (float[batch,3] x, float[5,3] table) => (float[batch,3] y) {y = Relu(x)}",
            "the first axis of input `table` has a fixed size, 5",
            [[-1, 3], [5, 3], [-1, 3]],
        ),
        (
            "g (float[batch,3] x) => (float[batch,3] y, float loss) {y = Relu(x) loss = ReduceSum<keepdims = 0>(x)}",
            "output `loss` is a scalar, without a batch axis",
            [[-1, 3], [-1, 3], [1]],
        ),
        (
            "g (float[batch,3] x) => (float[words,3] y) {y = Relu(x)}",
            "the first axis of output `y` is not the batch",
            [[-1, 3], [-1, 3]],
        ),
        (
            "g (float[batch,3] x) => (float[batch,batch] y) {y = Relu(x)}",
            "output `y` has a further axis that follows the batch",
            [[-1, 3], [-1, -1]],
        ),
        (
            "g (float x) => (float y) {y = Relu(x)}",
            "input `x` is a scalar, without a batch axis",
            [[1], [1]],
        ),
    ],
)
def test_what_does_not_is_served_with_its_full_shapes_and_says_why(text, reason, dims):
    done = configured(text)
    config = parse(done.text)
    assert done.unbatched == reason
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert [list(one.dims) for one in (*config.input, *config.output)] == dims
    assert not any(one.HasField("reshape") for one in (*config.input, *config.output))
    assert differences(config, parsed(text, check=False)) == []


TYPES = {
    "FLOAT": "FP32",
    "FLOAT16": "FP16",
    "DOUBLE": "FP64",
    **{name: name for name in ("BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")},
    "STRING": "STRING",
}


@pytest.mark.parametrize("name", TYPES)
def test_every_type_that_triton_takes(name):
    config = parse(configured(tensor_model(getattr(TensorProto, name))).text)
    assert [type_name(one) for one in (*config.input, *config.output)] == [f"TYPE_{TYPES[name]}"] * 2


@pytest.mark.parametrize(
    "name", [name for name, _ in TensorProto.DataType.items() if name not in {*TYPES, "UNDEFINED"}]
)
def test_a_type_that_triton_does_not_take_is_an_error(name):
    with pytest.raises(ArgumentError, match=f"Triton's ONNX Runtime takes no {name}, as input `x` is"):
        configured(tensor_model(getattr(TensorProto, name)))


def test_an_empty_axis_is_an_error():
    with pytest.raises(ArgumentError, match="Triton takes no axis of size 0, as input `x` has"):
        configured(tensor_model(TensorProto.FLOAT, ("batch", 0)))


@given(st.text(min_size=1).filter(lambda name: name != "y"), st.text(min_size=1))
def test_every_name_is_read_as_it_was_written(tensor, model):
    config = parse(configured(tensor_model(TensorProto.FLOAT, name=tensor), name=model).text)
    assert (config.name, config.input[0].name) == (model, tensor)


@pytest.mark.parametrize(
    ("verified", "kinds"), [(("cpu",), ["KIND_CPU"]), (("cuda",), ["KIND_GPU"]), (("cpu", "cuda"), [])]
)
def test_triton_runs_it_where_it_was_verified_and_with_the_same_settings(verified, kinds):
    config = parse(configured(TWO, verified).text)
    assert [type(group).Kind.Name(group.kind) for group in config.instance_group] == kinds
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    if "cuda" not in verified:
        assert not config.HasField("optimization")
        return
    assert [(one.name, dict(one.parameters)) for one in accelerators] == [
        ("cuda", {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"})
    ]
    # The backend takes this one from here alone, by its number, and EXHAUSTIVE if it is not there.
    assert config.parameters["cudnn_conv_algo_search"].string_value == "1"


@pytest.mark.parametrize(
    ("old", "new"),
    [('"net"', '"net'), ("max_batch_size", "most_samples"), ("TYPE_FP32", "TYPE_FP33"), ("dims: [", "dims: ["[:-1])],
)
def test_a_broken_text_is_not_read(old, new):
    text = configured(TWO).text
    assert old in text
    with pytest.raises(text_format.ParseError):
        parse(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("TYPE_INT64", "TYPE_INT32", "input index is TYPE_INT32"),
        ("dims: [3, -1, 8]", "dims: [3, 8, 8]", "input image is [3, 8, 8] there and [-1, 3, -1, 8] in the file"),
        ('name: "score"', 'name: "points"', "output names ['y', 'points']"),
        ("max_batch_size: 16", "max_batch_size: 0", "dynamic batching and max_batch_size do not go together"),
        ("max_batch_size: 16", "max_batch_size: 0", "input index has an empty reshape and no batch"),
        ("dims: [1]", "dims: []", "input index has dims []"),
        ('"onnxruntime_onnx"', '"tensorrt_plan"', "platform tensorrt_plan, backend onnxruntime"),
    ],
)
def test_a_configuration_of_another_file_is_found(old, new, found):
    text = configured(TWO).text
    assert old in text
    assert found in differences(parse(text.replace(old, new, 1)), parsed(TWO, check=False))


def test_the_same_file_gets_the_same_text():
    assert configured(TWO).text == configured(onnx.load_from_string(parsed(TWO, check=False).SerializeToString())).text
