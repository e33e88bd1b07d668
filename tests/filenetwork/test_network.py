"""A file as a network: its tensors by their names, inputs in any form, float64, and files that are refused."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from support.onnx_files import parsed, saved
from torch import nn

from jumpout_export.errors import LoadError
from jumpout_export.filenetwork.network import FileNetwork
from jumpout_export.model.batches import Batch

rng = np.random.default_rng(0)
WEIGHT, BIAS = rng.normal(size=(5, 4)).astype(np.float32), rng.normal(size=5).astype(np.float32)
GRAPH = """g (float[n,4] a, float[n,4] b) => (float[n,5] y, float[n,4] both) {
  both = Add (a, b) half = Constant <value_float = 0.5> () less = Mul (both, half)
  [head] y = Gemm <transB = 1> (less, w, c)
}"""


@pytest.fixture
def path(tmp_path):
    model = parsed(GRAPH, {"w": WEIGHT, "c": BIAS})
    dotted = {"w": "fc.weight", "c": "fc.bias"}  # which the text form has not
    for tensor in model.graph.initializer:
        tensor.name = dotted[tensor.name]
    for node in model.graph.node:
        node.input[:] = [dotted.get(name, name) for name in node.input]
        node.name = "head/Gemm.1" if node.name == "head" else node.name
    return saved(model, tmp_path / "m.onnx")


def test_tensors_and_nodes_have_their_names(path):
    network = FileNetwork(path)
    assert {name: tuple(value.shape) for name, value in network.named_parameters()} == {
        "fc.weight": (5, 4),
        "fc.bias": (5,),
        "half": (),
    }
    assert {name for name, _ in network.named_children()} == {"Add_both", "Mul_less", "head/Gemm_1"}
    assert (network.inputs, network.outputs) == (("a", "b"), ("y", "both"))
    assert not network.training
    assert isinstance(network, nn.Module)


def test_it_gives_what_onnx_runtime_gives_and_float64_is_nearer_to_the_truth(path):
    network = FileNetwork(path)
    a, b = (torch.from_numpy(rng.normal(size=(7, 4)).astype(np.float32)) for _ in range(2))
    found = network({"a": a, "b": b})
    served = onnxruntime.InferenceSession(path).run(None, {"a": a.numpy(), "b": b.numpy()})
    for have, want in zip(found.values(), served, strict=True):
        np.testing.assert_allclose(have.numpy(), want, rtol=1e-5, atol=1e-6)
    exact = network.double()({"a": a.double(), "b": b.double()})
    truth = (0.5 * (a.double() + b.double())).numpy() @ WEIGHT.astype(np.float64).T + BIAS.astype(np.float64)
    assert exact["y"].dtype == torch.float64
    np.testing.assert_allclose(exact["y"].numpy(), truth, rtol=1e-14, atol=1e-14)


def test_a_cast_to_float32_is_one_to_float64_there(tmp_path):
    nodes = "f = Cast <to = 1> (x) t = Constant <value_float = 3.0> () y = Div (f, t)"
    network = FileNetwork(saved(f"g (int64[n,4] x) => (float[n,4] y) {{ {nodes} }}", tmp_path / "m.onnx"))
    x = torch.arange(8).reshape(2, 4)
    assert network({"x": x})["y"].dtype == torch.float32
    exact = network.double()({"x": x})["y"]
    assert exact.dtype == torch.float64
    np.testing.assert_array_equal(exact.numpy(), x.numpy() / 3.0)


@pytest.mark.parametrize(
    "form", ["in order", "with labels", "by name", "more names", "list of batches", "as a command does"]
)
def test_batches_are_named(path, form):
    network, a, b = FileNetwork(path), torch.zeros(2, 4), torch.ones(2, 4)
    given = {
        "in order": (a, b),
        "with labels": (a, b, torch.zeros(2, dtype=torch.long)),
        "by name": {"b": b, "a": a},
        "more names": {"b": b, "a": a, "label": torch.zeros(2)},
        "list of batches": [(a, b)],
        "as a command does": [Batch((a, b), {})],
    }[form]
    (batch,) = network.batches(given)
    assert list(batch.args[0]) == ["a", "b"]
    assert torch.equal(batch.args[0]["b"], b)


def test_a_branch_reads_what_is_around_it(tmp_path):
    double = "then_branch = t () => (float[n,4] p) { p = Mul (x, two) }"
    negate = "else_branch = e () => (float[n,4] q) { q = Neg (x) }"
    nodes = f"two = Constant <value_float = 2.0> () y = If (c) <{double}, {negate}>"
    network = FileNetwork(saved(f"g (bool c, float[n,4] x) => (float[n,4] y) {{ {nodes} }}", tmp_path / "m.onnx"))
    x = torch.randn(3, 4)
    assert torch.equal(network({"c": torch.tensor(True), "x": x})["y"], 2 * x)
    assert torch.equal(network({"c": torch.tensor(False), "x": x})["y"], -x)


@pytest.mark.parametrize("given", [torch.zeros(2, 4), {"a": torch.zeros(2, 4)}, 3])
def test_a_batch_that_lacks_an_input_is_refused(path, given):
    with pytest.raises(TypeError, match="the file's inputs"):
        list(FileNetwork(path).batches(given))


def test_an_input_of_another_type_is_refused(path):
    with pytest.raises(TypeError, match=r"input `b` must be torch\.float32, got torch\.int64"):
        list(FileNetwork(path).batches((torch.zeros(2, 4), torch.zeros(2, 4, dtype=torch.long))))


@pytest.mark.parametrize("shape", [(2, 5), (4,)])
def test_an_input_of_another_shape_is_refused(path, shape):
    with pytest.raises(TypeError, match=r"input `b` must have the shape \(n, 4\), got \("):
        list(FileNetwork(path).batches((torch.zeros(2, 4), torch.zeros(shape))))


def test_external_data_outside_of_the_folder_is_not_read(path, tmp_path):
    model = onnx.load(path)
    inner = tmp_path / "inner"
    inner.mkdir()
    onnx.save(model, inner / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    assert FileNetwork(inner / "m.onnx").state_dict().keys() >= {"fc.weight", "fc.bias"}
    changed = onnx.load(inner / "m.onnx", load_external_data=False)
    for entry in changed.graph.initializer[0].external_data:
        entry.value = "../w.bin" if entry.key == "location" else entry.value
    saved(changed, inner / "m.onnx")
    with pytest.raises(LoadError, match="outside of the model's folder"):
        FileNetwork(inner / "m.onnx")


def test_bfloat16_is_refused_by_name(tmp_path):
    model = parsed(
        "g (float[n] x) => (float[n] y) <bfloat16[1] w = {1}> { c = Cast <to = 1> (w) y = Mul (x, c) }", check=False
    )
    with pytest.raises(LoadError, match="`w` is bfloat16"):
        FileNetwork(saved(model, tmp_path / "m.onnx"))


RNG = np.random.default_rng(1)
PICTURES = torch.from_numpy(RNG.normal(size=(2, 3, 8, 8)).astype(np.float32))
UP = "s = Constant <value = float[4] {1.0, 1.0, 2.0, 3.0}> ()"
TRANSPOSED = "g (float[n,3,8,8] x) => (float[n,5,h,w] y) {{ y = ConvTranspose <strides = [2, 2], {}> (x, w, b) }}"
KERNELS = {"w": RNG.normal(size=(3, 5, 3, 3)).astype(np.float32), "b": RNG.normal(size=5).astype(np.float32)}
# Opset, graph, weights: what onnx's reference implementation has not, or has in its newest meaning alone.
OLDER = {
    "Softmax over all axes": (11, "g (float[n,3,8,8] x) => (float[n,3,8,8] y) { y = Softmax (x) }", {}),
    "LogSoftmax": (12, "g (float[n,3,8,8] x) => (float[n,3,8,8] y) { y = LogSoftmax <axis = 2> (x) }", {}),
    "Hardmax": (7, "g (float[n,3,8,8] x) => (float[n,3,8,8] y) { y = Hardmax <axis = -1> (x) }", {}),
    "Upsample": (9, f'g (float[n,3,8,8] x) => (float[n,3,h,w] y) {{ {UP} y = Upsample <mode = "linear"> (x, s) }}', {}),
    "Resize": (10, f'g (float[n,3,8,8] x) => (float[n,3,h,w] y) {{ {UP} y = Resize <mode = "nearest"> (x, s) }}', {}),
    "DequantizeLinear": (
        13,
        "g (float[n,3,8,8] x) => (float[n,3,8,8] y) { q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z) }",
        {"s": np.float32(0.02), "z": np.uint8(128)},
    ),
    "negative pads": (
        18,
        "g (float[n,3,8,8] x) => (float[n,3,h,w] y) { y = Pad (x, p, v, a) }",
        {"p": np.array([1, -2, -1, 1]), "v": np.float32(0.5), "a": np.array([-1, 2])},
    ),
    "uneven pads of a pool": (
        18,
        "g (float[n,3,8,8] x) => (float[n,3,h,w] y) { y = MaxPool <kernel_shape = [2, 3], pads = [0, 1, 1, 0]> (x) }",
        {},
    ),
    "a given output shape": (18, TRANSPOSED.format("output_shape = [16, 15]"), KERNELS),
    "the same, padded above": (18, TRANSPOSED.format('auto_pad = "SAME_UPPER"'), KERNELS),
    "the same, padded below": (18, TRANSPOSED.format('auto_pad = "SAME_LOWER"'), KERNELS),
    "uneven pads of a transposed convolution": (18, TRANSPOSED.format("pads = [0, 1, 1, 0]"), KERNELS),
    "bilinear": (
        16,
        'g (float[n,3,8,8] x) => (float[n,3,5,5] y) { y = GridSample <mode = "bilinear"> (x, g) }',
        {"g": RNG.uniform(-1.2, 1.2, size=(2, 5, 5, 2)).astype(np.float32)},
    ),
    "LRN": (13, "g (float[n,3,8,8] x) => (float[n,3,8,8] y) { y = LRN <size = 3, alpha = 0.1> (x) }", {}),
    "names of a module": (18, "g (float[n,3,8,8] x) => (float[n,3,8,8] y) { y = Mul (x, training) }",
                          {"training": np.array([0.5], np.float32)}),
    "an empty table of places": (
        18,
        "g (float[n,3,8,8] x) => (float[n,3,8,8] y) { y = ScatterND (x, i, u) }",
        {"i": np.zeros((0, 1), np.int64), "u": np.zeros((0, 3, 8, 8), np.float32)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OLDER)
def test_what_the_reference_implementation_lacks_is_what_onnx_runtime_makes_of_it(name, tmp_path):
    opset, graph, weights = OLDER[name]
    header = f'<ir_version: {4 if opset < 10 else 7}, opset_import: ["" : {opset}]>'
    path = saved(parsed(f"{header} {graph}", weights), tmp_path / "m.onnx")
    (want,) = onnxruntime.InferenceSession(path).run(None, {"x": PICTURES.numpy()})
    have = FileNetwork(path)({"x": PICTURES})["y"]
    np.testing.assert_allclose(have.numpy(), want, rtol=1e-5, atol=1e-5)
    assert FileNetwork(path).double()({"x": PICTURES.double()})["y"].dtype == torch.float64


def test_the_scales_of_a_resize_are_no_weight(tmp_path):
    graph = f'g (float[n,3,8,8] x) => (float[n,3,h,w] y) {{ {UP} y = Resize <mode = "nearest"> (x, , s) }}'
    assert not list(FileNetwork(saved(graph, tmp_path / "m.onnx")).parameters())


def test_a_node_that_cannot_be_run_is_named(tmp_path):
    nodes = "[pool] y = MaxRoiPool <pooled_shape = [2, 2]> (x, r)"
    graph = f"g (float[n,3,8,8] x, float[1,5] r) => (float[1,3,2,2] y) {{ {nodes} }}"
    network = FileNetwork(saved(graph, tmp_path / "m.onnx"))
    with pytest.raises(RuntimeError, match=r"node `pool` \(MaxRoiPool\): "):
        network({"x": PICTURES, "r": torch.zeros(1, 5)})
