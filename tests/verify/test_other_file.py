"""A file against the file that it was made of: what optimizers and converters write passes, and each break is found."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper, version_converter
from support.architectures import ARCHITECTURES, build
from support.onnx_files import parsed, saved

from jumpout_export import export_onnx, verify_onnx
from jumpout_export.render.headline import headline

SOME = ("ResNet", "transformer", "LSTM", "two inputs", "U-Net", "mixed norms")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The file of an architecture and its batch, exported once each."""
    folder, known = tmp_path_factory.mktemp("old"), {}

    def of(name):
        if name not in known:
            model, batch = build(name, 1)
            path = folder / f"{name}.onnx"
            assert export_onnx(model, path, batch)
            known[name] = path, batch
        return known[name]

    return of


def optimized(path, folder):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "new.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    onnxruntime.InferenceSession(path, options)
    return folder / "new.onnx"


def converted(path, folder):
    return saved(version_converter.convert_version(onnx.load(path), 21), folder / "new.onnx")


def problems(report):
    return {check.name: check.note for check in report.checks if check.blocks}


@pytest.mark.parametrize(
    ("name", "change"),
    [*((name, change) for name in SOME for change in (optimized, converted)),
     *((name, optimized) for name in ARCHITECTURES if name not in SOME)],
)  # fmt: skip
def test_what_an_optimizer_or_a_converter_writes_passes(exported, name, change, tmp_path):
    path, batch = exported(name)
    report = verify_onnx(change(path, tmp_path), path, batch)
    assert report, problems(report)
    assert any(note.startswith(f"compared with {path}, sha256 ") for note in report.notes)
    assert report.against == str(path)
    assert f"equals `{path.name}`" in headline(report)[1]
    assert {"other file", "other file as run"} <= {check.name for check in report.checks}


def one_value(model):
    """The largest weight of which one value is another, and the node that reads it."""
    tensor = max(model.graph.initializer, key=lambda one: np.prod(one.dims) if one.data_type == 1 else 0)
    array = numpy_helper.to_array(tensor).copy()
    array.flat[array.size // 2] = array.flat[array.size // 2] * 1.01 + 1e-4
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return next(node.name for node in model.graph.node if tensor.name in node.input)


def other_operator(model):
    node = next(node for node in model.graph.node if node.op_type in ("Relu", "Tanh", "Sigmoid"))
    node.op_type = {"Relu": "Softplus", "Tanh": "Sigmoid", "Sigmoid": "Tanh"}[node.op_type]
    return node.name


@pytest.mark.parametrize("change", [one_value, other_operator])
@pytest.mark.parametrize("name", SOME[:4])
def test_the_first_node_that_is_wrong_is_named(exported, name, change, tmp_path):
    path, batch = exported(name)
    model = onnx.load(path)
    node = change(model)
    report = verify_onnx(saved(model, tmp_path / "new.onnx"), path, batch)
    assert not report
    assert report.first_divergence == node


def test_folded_batch_normalizations_pass_and_a_stale_one_is_named(tmp_path):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    values = {
        "w": rng.normal(size=(6, 3, 3, 3)),
        "s": rng.uniform(0.5, 2, 6),
        "t": rng.normal(size=6),
        "m": rng.normal(size=6),
    }
    weights = {name: value.astype(np.float32) for name, value in values.items()}
    weights["v"] = rng.uniform(0.5, 2, 6).astype(np.float32)
    nodes = "c = Conv (x, w) [bn] b = BatchNormalization (c, s, t, m, v) y = Relu (b)"
    graph = f"g (float[n,3,8,8] x) => (float[n,6,6,6] y) {{ {nodes} }}"
    old = saved(parsed(graph, weights), tmp_path / "old.onnx")
    new = optimized(old, tmp_path)
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(new).graph.node}
    batch = torch.randn(4, 3, 8, 8)
    report = verify_onnx(new, old, batch)
    assert report, problems(report)
    stale = saved(parsed(graph, {**weights, "m": weights["m"] + 1e-3}), tmp_path / "stale.onnx")
    (tmp_path / "more").mkdir()
    report = verify_onnx(optimized(stale, tmp_path / "more"), old, batch)
    assert not report


def test_names_shapes_and_types_are_strict(exported, tmp_path):
    path, batch = exported("ResNet")
    model = onnx.load(path)
    old = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["logits" if name == old else name for name in node.output]
    model.graph.output[0].name = "logits"
    report = verify_onnx(saved(model, tmp_path / "new.onnx"), path, batch)
    assert "the file's outputs are logits, the model's are output" in problems(report)["cpu/off/names"]


def test_an_other_file_that_is_random_is_nothing_to_compare_with(tmp_path):
    graph = "g (float[n,4] x) => (float[n,4] y) {{ r = {} y = Add (x, r) }}"
    calm = saved(graph.format("Sub (x, x)"), tmp_path / "calm.onnx")
    noisy = saved(graph.format("RandomUniformLike (x)"), tmp_path / "noisy.onnx")
    report = verify_onnx(calm, noisy, torch.randn(4, 4))
    assert not report
    assert "file/random nodes" in problems(report)["other file"]
    assert report.providers["cpu"].reason == "the other file is nothing to compare with"


def test_an_operator_that_is_read_here_in_another_way_than_by_the_runtime_is_said(tmp_path, monkeypatch):
    from jumpout_export.filenetwork import operators

    old = saved("g (float[n,4] x) => (float[n,4] y) { [act] y = LeakyRelu <alpha = 0.2> (x) }", tmp_path / "old.onnx")
    x = torch.randn(4, 4)
    assert verify_onnx(old, old, x)
    monkeypatch.setitem(operators.OPERATORS, "LeakyRelu", lambda _attributes, x: x.clamp(min=0))
    report = verify_onnx(old, old, x)
    assert not report
    assert "first at act" in problems(report)["other file as run"]


TABLE = np.random.default_rng(0).normal(size=(400, 2)).astype(np.float32)
LOOK_UP = "g (int64[n,3] x) => (float[n,3,2] y) {{ {} y = Gather (w, i) }}"
CLIP_6 = """<ir_version: 5, opset_import: ["" : 10]> g (float[n,4] x) => (float[n,4] y)
{{ c = Constant <value = float {{0.4}}> () h = Mul (x, c) y = Clip <min = -90.0, max = {}> (h) }}"""
WIDE = """g (float[n,m] x) => (float[n,m] y) { s = Shape <start = 1, end = 2> (x) t = Constant <value_ints = [64]> ()
  c = GreaterOrEqual (s, t) k = Cast <to = 1> (c) o = Constant <value_float = 1.0> () f = Add (k, o) y = Mul (x, f) }"""
BRANCH = "then_branch = t () => (float[n,4] p) { p = Neg (x) }, else_branch = e () => (float[n,4] q) { q = Relu (x) }"
X = torch.linspace(-3, 3, 24).reshape(6, 4)
LOST = {
    "a bound of ids": (
        LOOK_UP.format("l = Constant <value_int = 0> () h = Constant <value_int = 255> () i = Clip (x, l, h)"),
        LOOK_UP.format("i = Identity (x)"),
        "cpu/off/x=254..256/worst error",
    ),
    "a narrow integer": (
        LOOK_UP.format("b = Cast <to = 2> (x) i = Cast <to = 7> (b)"),
        LOOK_UP.format("i = Identity (x)"),
        "cpu/off/x=255..257/worst error",
    ),
    "what a size decides": (
        WIDE, "g (float[n,m] x) => (float[n,m] y) { y = Identity (x) }", "cpu/off/sizes batch=3 m=64/worst error",
    ),
    "a branch": (
        f"g (bool c, float[n,4] x) => (float[n,4] y) {{ y = If (c) <{BRANCH}> }}",
        "g (bool c, float[n,4] x) => (float[n,4] y) { y = Relu (x) }",
        "other file: branches",
    ),
    "a bound that is an attribute": (CLIP_6.format("90.0"), CLIP_6.format("60.0"), "magnitudes"),
    "a bound beyond a hundred times the inputs": (
        "g (float[n,4] x) => (float[n,4] y) { h = Constant <value_float = 10000.0> () y = Min (x, h) }",
        "g (float[n,4] x) => (float[n,4] y) { y = Identity (x) }",
        "cpu/off/x=10000/worst error",
    ),
    "an open batch": (
        "g (float[n,4] x) => (float[n,4] y) { y = Neg (x) }",
        "g (float[6,4] x) => (float[6,4] y) { y = Neg (x) }",
        "other file: open axes",
    ),
    "another open axis": (
        "g (float[n,m] x) => (float[n,m] y) { y = Neg (x) }",
        "g (float[n,4] x) => (float[n,4] y) { y = Neg (x) }",
        "other file: open axes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LOST)
def test_what_the_other_file_decides_is_tried_though_the_new_one_has_it_no_more(name, tmp_path):
    """A simplifier that drops what the given inputs do not reach; each file equals itself."""
    old, new, check = LOST[name]
    ids, weights = ("Gather" in old, {"w": TABLE} if "Gather" in old else {})
    inputs = torch.randint(0, 100, (4, 3)) if ids else (torch.tensor(False), X) if "bool c" in old else X
    old = saved(parsed(old, weights), tmp_path / "old.onnx")
    report = verify_onnx(saved(parsed(new, weights), tmp_path / "new.onnx"), old, inputs)
    assert check in problems(report), problems(report)
    if name != "a branch":  # one that no input runs fails in either file
        assert verify_onnx(old, old, inputs), name


def test_a_file_whose_nodes_cannot_be_read_here_is_not_compared(tmp_path):
    rois = np.array([[0, 0, 0, 4, 4]], np.float32)
    nodes = "[pool] p = MaxRoiPool <pooled_shape = [2, 2]> (x, r) y = Neg (p)"
    old = saved(parsed(f"g (float[n,3,8,8] x) => (float[1,3,2,2] y) {{ {nodes} }}", {"r": rois}), tmp_path / "old.onnx")
    report = verify_onnx(old, old, torch.randn(1, 3, 8, 8))
    assert {check.verdict for check in report.checks if check.blocks} == {"not_run"}
    assert "cannot be run here: node `pool` (MaxRoiPool): " in problems(report)["other file as run"]
    assert report.providers["cpu"].verdict == "not_run"


def test_an_operator_that_is_read_here_in_another_way_lays_nothing_to_the_new_file(tmp_path, monkeypatch):
    from jumpout_export.filenetwork import operators

    old = saved("g (float[n,4] x) => (float[n,4] y) { [act] y = LeakyRelu <alpha = 0.2> (x) }", tmp_path / "old.onnx")
    monkeypatch.setitem(operators.OPERATORS, "LeakyRelu", lambda _attributes, x: x.clamp(min=0))
    report = verify_onnx(old, old, X)
    assert set(problems(report)) == {"other file as run"}
    assert report.providers["cpu"].reason == "the other file is nothing to compare with"


ROOT = np.float32(2**0.5)
NORM = "m = ReduceMean <axes = [-1]> (x) d = Sub (x, m) q = Mul (d, d) v = ReduceMean <axes = [-1]> (q)"
FUSED = {
    "GELU": ("d = Div (x, root) f = Erf (d) o = Add (f, one) p = Mul (x, o) y = Mul (p, half)", "y = Gelu (x)"),
    "LayerNorm": (
        f"{NORM} e = Add (v, tiny) s = Sqrt (e) z = Div (d, s) y = Mul (z, scale)",
        "y = LayerNormalization <axis = -1> (x, scale)",
    ),
    "two factors": ("a = Mul (x, half) y = Mul (a, root)", "y = Mul (x, product)"),
}  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_what_a_simplifier_makes_of_several_nodes_passes(name, tmp_path):
    """Numbers of the old file are in an operator of the new one, or in another number."""
    values = {"root": ROOT, "one": np.float32(1), "half": np.float32(0.5), "tiny": np.float32(1e-5)}
    values |= {"scale": np.arange(1, 5, dtype=np.float32), "product": ROOT / 2}
    old, new = (
        saved(
            parsed(
                f'<ir_version: 10, opset_import: ["" : {opset}]> g (float[n,4] x) => (float[n,4] y) {{ {nodes} }}',
                {name: value for name, value in values.items() if f"{name})" in nodes or f"{name}," in nodes},
            ),
            tmp_path / f"{kind}.onnx",
        )
        for kind, nodes, opset in zip(("old", "new"), FUSED[name], (17, 20), strict=True)
    )
    report = verify_onnx(new, old, X)
    assert report, problems(report)
