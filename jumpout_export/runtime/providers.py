"""Which ONNX Runtime is installed, and whether one of its execution providers can be used here, or why not."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
from pathlib import Path

from jumpout_export.runtime.cuda import explain_cudnn, explain_driver, explain_libraries
from jumpout_export.runtime.placement import ASSIGNMENT_ENTRY, NAMES, elsewhere
from jumpout_export.text import first_line

INSTALL_CPU = "pip install 'jumpout-export[onnx]'"
INSTALL_CUDA = "pip install 'jumpout-export[onnx-gpu]'"

# TensorFloat-32 rounds to 10 bits and is on by default; an exhaustive search may choose another algorithm each time.
CUDA_SETTINGS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}


def installed_packages() -> dict[str, str]:
    """Returns the distributions that own the importable `onnxruntime`, name to version, without importing it.

    More than one means that they were installed over each other, and that the files are those of the last one.
    """
    spec = importlib.util.find_spec("onnxruntime")
    places = [] if spec is None else [Path(place).resolve() for place in spec.submodule_search_locations or ()]
    found = {}
    for package in importlib.metadata.distributions():
        files = package.files or ()
        owns_one = any(file.parts == ("onnxruntime", "__init__.py") for file in files)
        if owns_one and Path(str(package.locate_file("onnxruntime"))).resolve() in places:
            found[package.name] = package.version
    return dict(sorted(found.items()))


def explain_installation() -> str | None:
    """Returns why no ONNX Runtime can be imported, or that several overwrite each other; None if all is well."""
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None:
        return f"onnxruntime is not installed: {INSTALL_CPU}, or {INSTALL_CUDA} for a GPU"
    packages = installed_packages()
    if len(packages) > 1:
        names = " and ".join(f"{name} {version}" for name, version in packages.items())
        return f"{names} are installed over each other and are one import package: {_again(packages)}"
    if spec.origin is None:  # a folder without __init__.py: what is left after one of two was uninstalled
        where = ", ".join(spec.submodule_search_locations or ())
        return f"the installed onnxruntime is incomplete, {where} has no __init__.py: {_again(packages)}"
    try:
        import onnxruntime  # noqa: F401
    except Exception as error:  # a missing library, a wrong build of NumPy, ...
        return f"onnxruntime cannot be imported ({first_line(error)}): {_again(packages)}"
    return None


@functools.cache
def explain_unusable(provider: str) -> str | None:
    """Returns why `cpu` or `cuda` cannot be used here and what helps, or None if a convolution ran there.

    Nothing is taken from a list of names: ONNX Runtime lists CUDA without any CUDA library, and then runs everything
    on the CPU without a word. The answer is kept for the life of the process.
    """
    installation = explain_installation()
    try:
        import onnxruntime

        available, version = onnxruntime.get_available_providers(), onnxruntime.__version__
    except Exception:  # `installation` says it
        return installation
    if NAMES[provider] not in available:
        missing = f"the installed onnxruntime {version} has no {NAMES[provider]}; "
        return missing + (installation or f"install one that has: pip uninstall onnxruntime && {INSTALL_CUDA}")
    problem = _explain_cuda(version) if provider == "cuda" else _explain_session(provider)
    return f"{problem}; besides, {installation}" if problem and installation else problem


def _explain_cuda(version: str) -> str | None:
    import onnxruntime

    if not hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
        return (
            f"onnxruntime {version} cannot tell which nodes run on CUDA, 1.24 and later can: "
            "pip install --upgrade 'onnxruntime-gpu[cuda,cudnn]'"
        )
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it did not find
        onnxruntime.preload_dlls()
    return explain_libraries(INSTALL_CUDA) or _explain_session("cuda")


def _explain_session(provider: str) -> str | None:
    try:
        problem = _try_convolution(provider)
    except Exception as error:  # ONNX Runtime raises a dozen types without a common base
        reason = explain_driver(error)
        if reason is not None:
            return reason
        problem = f"ONNX Runtime cannot run a convolution on {NAMES[provider]}: {first_line(error)}"
    if problem and provider == "cuda":
        return explain_cudnn(INSTALL_CUDA) or problem
    return problem


def _try_convolution(provider: str) -> str | None:
    """Runs a convolution, which needs cuDNN too; returns what is wrong with where it ran or what came out."""
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 2, 2]) for name in "xy"]
    weight = numpy_helper.from_array(np.full((1, 1, 1, 1), 3, np.float32), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="convolution")
    graph = helper.make_graph([node], "try", ends[:1], ends[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it would log is in the exception
    options.add_session_config_entry(*ASSIGNMENT_ENTRY)
    settings = CUDA_SETTINGS if provider == "cuda" else {}
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=[(NAMES[provider], settings)], enable_fallback=0
    )
    wrong = elsewhere(session, provider)
    if wrong:
        return f"ONNX Runtime does not run a convolution on {NAMES[provider]}: {wrong[0]}"
    x = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    (y,) = session.run(None, {"x": x})
    return None if np.array_equal(y, 3 * x) else f"a convolution on {NAMES[provider]} computes {y.tolist()}"


def _again(packages: dict[str, str]) -> str:
    """The commands that put one ONNX Runtime in the place of whatever is there."""
    names = " ".join(packages) or "onnxruntime onnxruntime-gpu"
    return f"pip uninstall -y {names} && {INSTALL_CUDA if 'onnxruntime-gpu' in names else INSTALL_CPU}"
