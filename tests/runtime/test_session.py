"""Where a session runs is proven node by node; a session that silently runs elsewhere never passes for the GPU."""

import subprocess
import sys

import onnx
import onnxruntime
import pytest
import torch
from support.onnx_files import saved
from torch import nn

from jumpout_export import export_onnx, verify_onnx
from jumpout_export.errors import NotVerifiableError
from jumpout_export.model.signature import onnx_batch
from jumpout_export.runtime.placement import check_placement
from jumpout_export.runtime.provider import Placed, Provider, placed
from jumpout_export.runtime.providers import PROVIDERS, check_providers
from jumpout_export.runtime.saved import SavedFile
from jumpout_export.runtime.session import open_session
from jumpout_export.runtime.worker import ASSIGNMENT_ENTRY
from jumpout_export.verify.runner import run_providers

SAMPLES = torch.randn(9, 1, 6, 6, generator=torch.Generator().manual_seed(1))
HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
without_cuda = pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime has the CUDA provider")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()


@pytest.fixture(scope="module")
def file(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("session") / "m.onnx"
    assert export_onnx(network, path, SAMPLES)
    return path


def session_of(path):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry(*ASSIGNMENT_ENTRY)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def on(provider, *nodes):
    return [Placed(name, operator, PROVIDERS[provider].onnxruntime_name) for name, operator in nodes]


@pytest.mark.integration
def test_every_node_of_a_cpu_session_is_on_the_cpu(file):
    nodes = placed(session_of(file))
    assert [(node.name, node.operator) for node in nodes] == [
        (node.name, node.op_type) for node in onnx.load(file).graph.node
    ]
    check = check_placement("cpu/off", "cpu", nodes, file)
    assert (check.name, check.verdict, check.measured) == ("cpu/off/nodes", "pass", 0)
    assert check.note == f"{len(nodes)} nodes run on CPUExecutionProvider"
    assert PROVIDERS["cpu"].elsewhere(session_of(file)) == []


@pytest.mark.integration
def test_a_cpu_session_is_no_proof_for_cuda_and_its_nodes_are_named(file):
    nodes = placed(session_of(file))
    check = check_placement("cuda/off", "cuda", nodes, file)
    assert (check.verdict, check.measured, check.limit) == ("fail", len(nodes), 0)
    assert f"{len(nodes)} of {len(nodes)} nodes do not run on CUDAExecutionProvider" in check.note
    first = onnx.load(file).graph.node[0].name
    assert f"`{first}` (Conv) runs on CPUExecutionProvider" in check.note
    assert PROVIDERS["cuda"].elsewhere(session_of(file))[0] == f"`{first}` (Conv) runs on CPUExecutionProvider"


def test_nodes_of_subgraphs_and_without_a_name_are_named_too(tmp_path):
    text = """g (bool c, float[2] x) => (float[2] out) {
        out = If(c) <
            then_branch = relu () => (float[2] y) { [inner] y = Relu(x) },
            else_branch = neg () => (float[2] y) { y = Neg(x) }
        >
    }"""
    path = saved(text, tmp_path / "if.onnx")
    check = check_placement("cuda/off", "cuda", placed(session_of(path)), path)
    assert check.measured == 3
    assert "`inner` (Relu) runs on CPUExecutionProvider" in check.note
    assert "a node without name (Neg) runs on CPUExecutionProvider" in check.note
    assert "a node without name (If)" in check.note


@pytest.mark.integration
def test_no_node_at_all_proves_nothing(file):
    check = check_placement("cuda/all", "cuda", [], file)
    assert (check.verdict, check.note) == ("fail", "no node runs on CUDAExecutionProvider")


def reshaping(path, names=("shape", "part", "reshape", "relu")):
    """Flattens an input to its own first size: two nodes compute a shape, two compute values."""
    text = f"""g (float[n,2,3] x) => (float[n,6] y) <int64[1] zero = {{0}}, int64[1] minus = {{-1}}> {{
        [{names[0]}] s = Shape(x)
        [{names[1]}] n = Gather(s, zero)
        [concat] t = Concat<axis = 0>(n, minus)
        [{names[2]}] r = Reshape(x, t)
        [{names[3]}] y = Relu(r)
    }}"""
    return saved(text, path)


SHAPES = [("shape", "Shape"), ("part", "Gather"), ("concat", "Concat")]


def test_what_computes_shapes_may_stay_on_the_cpu_and_is_counted(tmp_path):
    path = reshaping(tmp_path / "r.onnx")
    nodes = [*on("cpu", *SHAPES), *on("cuda", ("reshape", "Reshape"), ("relu", "Relu"))]
    assert {(node.name, node.operator) for node in nodes} == {
        (node.name, node.operator) for node in placed(session_of(path))
    }
    check = check_placement("cuda/all", "cuda", nodes, path)
    assert check.verdict == "pass", check.note
    assert check.note == "2 nodes run on CUDAExecutionProvider; 3 on the CPU read shapes and constants only"


def test_what_computes_values_may_not_stay_on_the_cpu(tmp_path):
    path = reshaping(tmp_path / "r.onnx")
    nodes = [*on("cpu", *SHAPES, ("relu", "Relu")), *on("cuda", ("reshape", "Reshape"))]
    check = check_placement("cuda/all", "cuda", nodes, path)
    assert (check.verdict, check.measured) == ("fail", 1)
    assert "1 of 5 nodes do not run on CUDAExecutionProvider" in check.note
    assert "most often for want of a kernel: `relu` (Relu) runs on CPUExecutionProvider" in check.note


def test_shapes_alone_on_the_gpu_would_prove_nothing(tmp_path):
    path = reshaping(tmp_path / "r.onnx")
    check = check_placement("cuda/all", "cuda", on("cpu", *SHAPES), path)
    assert (check.verdict, check.note) == ("fail", "no node runs on CUDAExecutionProvider")


def test_another_provider_and_an_unknown_node_are_no_shape_computation(tmp_path):
    path = reshaping(tmp_path / "r.onnx")
    nodes = [Placed("shape", "Shape", "TensorrtExecutionProvider"), *on("cpu", ("added", "Cast"))]
    assert check_placement("cuda/all", "cuda", [*nodes, *on("cuda", ("relu", "Relu"))], path).measured == 2


def test_a_shared_name_counts_as_a_shape_only_if_all_its_nodes_are(tmp_path):
    text = "g (float[2] x) => (float[1] f, double[2] d) { s = Shape(x) f = Cast<to = 1>(s) d = Cast<to = 11>(x) }"
    path = saved(text, tmp_path / "c.onnx")
    nodes = [*on("cpu", ("", "Shape"), ("", "Cast")), *on("cuda", ("", "Cast"))]
    check = check_placement("cuda/all", "cuda", nodes, path)
    assert (check.measured, check.verdict) == (1, "fail")
    assert "a node without name (Cast)" in check.note


def test_a_value_of_an_inner_graph_that_hides_a_shape_is_no_shape(tmp_path):
    text = """g (bool c, float[2] x) => (float[2] out, int64[1] outer) {
        [shape] outer = Shape(x)
        [if] out = If(c) <
            then_branch = relu () => (float[2] y) { [values] hidden = Neg(x) ["inner Relu"] y = Relu(hidden) },
            else_branch = abs () => (float[2] y) { [values] hidden = Neg(x) ["inner Abs"] y = Abs(hidden) }
        >
    }"""
    path = saved(text, tmp_path / "if.onnx")
    nodes = [*on("cpu", ("shape", "Shape"), ("inner Relu", "Relu"), ("if", "If")), *on("cuda", ("values", "Neg"))]
    assert check_placement("cuda/all", "cuda", nodes, path).measured == 2


@pytest.mark.integration
@without_cuda
@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider' is not in available:UserWarning")
def test_a_session_that_silently_runs_on_the_cpu_fails_for_cuda(file, network, monkeypatch):
    """ONNX Runtime opens a CPU session if CUDA is asked for and missing: here nothing warned before."""
    monkeypatch.setattr(Provider, "explain_unusable", lambda provider: None)
    report = verify_onnx(file, network, SAMPLES, ("cpu", "cuda"))
    assert {name: provider.verdict for name, provider in report.providers.items()} == {"cpu": "pass", "cuda": "fail"}
    assert "cuda/off/nodes: 4 of 4 nodes do not run on CUDAExecutionProvider" in report.providers["cuda"].reason
    assert not report
    failed = [check.name for check in report.checks if check.verdict == "fail"]
    assert failed == ["cuda/off/nodes", "cuda/all/nodes"]


@without_cuda
@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider' is not in available:UserWarning")
@pytest.mark.parametrize(("noise", "verdict"), [(1e-8, "pass"), (1e-3, "fail")], ids=["tiny", "large"])
def test_runs_that_differ_on_a_gpu_are_reported_and_each_is_compared(tmp_path, monkeypatch, noise, verdict):
    monkeypatch.setattr(Provider, "explain_unusable", lambda provider: None)
    text = f"""g (float[n,3] input) => (float[n,3] output) {{
        [noise] r = RandomUniformLike<low = {-noise:.9f}, high = {noise:.9f}>(input)
        [add] output = Add(input, r)
    }}"""
    path = saved(text, tmp_path / "noisy.onnx")
    model = nn.Identity().eval()
    batch = onnx_batch(torch.rand(8, 3), model)
    report = run_providers(SavedFile(path), model, model, [batch], ("cuda",))
    checks = {check.name: check for check in report.checks}
    assert checks["cuda/all/repeatable"].verdict == "pass"
    assert checks["cuda/all/repeatable"].measured > 0
    assert "pairs of runs differ in a bit" in checks["cuda/all/repeatable"].note
    assert checks["cuda/all/data, second run/worst error"].verdict == verdict


@pytest.mark.integration
@without_cuda
def test_cuda_that_cannot_be_used_opens_nothing(file):
    with pytest.raises(NotVerifiableError, match=r"CUDA cannot be used: the installed onnxruntime .* has no CUDAExec"):
        open_session(file, "cuda", "all")


def test_a_file_that_cannot_be_loaded_is_the_files_fault(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(Exception, match="Protobuf parsing failed") as caught:
        open_session(tmp_path / "bad.onnx", "cpu", "all")
    assert not isinstance(caught.value, NotVerifiableError)


@pytest.mark.integration
def test_a_session_knows_its_names(file):
    session = open_session(file, "cpu", "off")
    assert (session.inputs, session.outputs, session.nodes) == (["input"], ["output"], [])
    assert session.run([SAMPLES])[0].shape == (9, 3)


@pytest.mark.parametrize(("given", "got"), [("cpu", ("cpu",)), (["cuda", "cpu", "cuda"], ("cuda", "cpu"))])
def test_provider_names_are_taken_once(given, got):
    assert check_providers(given) == got


@pytest.mark.integration
def test_an_onnxruntime_of_which_a_part_is_left_is_no_fault_of_the_file():
    code = (
        "import sys, types; from jumpout_export.extras import require_onnx;"
        "sys.modules['onnxruntime'] = types.ModuleType('onnxruntime'); require_onnx('onnxruntime')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "only a part of onnxruntime is left; uninstall every package of it first" in done.stderr
