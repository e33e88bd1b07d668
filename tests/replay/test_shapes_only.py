"""Which nodes may stay on the CPU because they only read shapes: Python and C++ give the same answer, the stated one.

All nodes of each case of `support/shape_cases.py` are put on the CPU, in a made-up session for Python and in a made-up
profile for C++; then ONNX Runtime itself runs the graph.
"""

import re

import numpy as np
import onnxruntime
import pytest
from support.onnx_files import saved
from support.shape_cases import CASES, nodes_in

from jumpout_export.runtime.placement import check_placement
from jumpout_export.runtime.provider import Placed, placed
from jumpout_export.runtime.worker import ASSIGNMENT_ENTRY

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def python_refuses(path, nodes, provider=CPU):
    """The nodes that Python does not allow there, each asked for alone."""
    on_gpu = Placed("there", "Conv", CUDA)
    return {
        (name, operator)
        for name, operator in nodes
        if check_placement("cuda/all", "cuda", [Placed(name, operator, provider), on_gpu], path).measured
    }


@pytest.fixture
def cpp_refuses(replay, sanitized, tmp_path):
    """The same of C++, with the names that ONNX Runtime's profile has."""

    def run(path, nodes, provider=CPU):
        ran = [(name or f"{operator}_{index}", operator, provider) for index, (name, operator) in enumerate(nodes)]
        profile = replay.write_profile(tmp_path / "profile.json", *ran, ("there", "Conv", CUDA))
        return refused(replay, profile, path, nodes)

    return run


def refused(replay, profile, path, nodes):
    """What C++ refuses of a profile; a name that is none of the nodes' is that of a node without one."""
    done = replay.run(replay.sanitized / "replay-proof", profile, "cuda", path)
    assert (done.returncode, done.stderr) == (0, ""), done
    problems = re.findall(r"^problem: node `(.*)` \((.*)\) ran on", done.stdout, re.MULTILINE)
    assert "more nodes" not in done.stdout
    return {(name if (name, operator) in nodes else "", operator) for name, operator in problems}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_python_and_cpp_give_the_stated_answer(cpp_refuses, tmp_path, case):
    model = case.model()
    path = saved(model, tmp_path / "m.onnx")
    nodes = [*nodes_in(model), *case.more]
    assert python_refuses(path, nodes) == case.refused(model)
    assert cpp_refuses(path, nodes) == case.refused(model)


RUN = {name: case for name, case in CASES.items() if case.runs and not case.more}


@pytest.mark.parametrize("case", RUN.values(), ids=RUN.keys())
def test_they_agree_on_what_onnx_runtime_says_of_a_session(replay, sanitized, tmp_path, case):
    """Its profile and its assignment name nodes as both sides expect."""
    model = case.model()
    path = saved(model, tmp_path / "m.onnx")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry(*ASSIGNMENT_ENTRY)
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "real")
    session = onnxruntime.InferenceSession(path, options, providers=[CPU])
    session.run(None, {value.name: zeros(value) for value in session.get_inputs()})
    profile = session.end_profiling()
    nodes = {(node.name, node.operator) for node in placed(session)}
    assigned, executed = python_refuses(path, nodes), refused(replay, profile, path, nodes)
    assert executed <= assigned
    skipped = {name for name, _ in assigned - executed}  # in a branch that was not taken
    assert skipped <= {"else", "cast"} if "If" in case.text else not skipped


def zeros(value):
    dtype = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_}[value.type]
    return np.zeros([size if isinstance(size, int) else 3 for size in value.shape], dtype)


def test_shapes_alone_prove_nothing(replay, sanitized, tmp_path):
    path = saved(CASES["nodes of the optimizer"].model(), tmp_path / "m.onnx")
    profile = replay.write_profile(tmp_path / "profile.json", ("shape", "Shape", CPU), ("cast", "Cast", CPU))
    done = replay.run(replay.sanitized / "replay-proof", profile, "cuda", path)
    assert done.stdout == f"2 on {CPU}\nproblem: no node ran on the GPU\n"


def test_another_provider_is_no_place_for_shapes(cpp_refuses, tmp_path):
    path = saved(CASES["nodes of the optimizer"].model(), tmp_path / "m.onnx")
    nodes = [("shape", "Shape"), ("cast", "Cast")]
    assert python_refuses(path, nodes) == cpp_refuses(path, nodes) == set()
    other = "TensorrtExecutionProvider"
    assert python_refuses(path, nodes, other) == cpp_refuses(path, nodes, other) == set(nodes)
