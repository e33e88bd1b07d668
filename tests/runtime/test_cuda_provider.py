"""Why CUDA cannot be used: every real error text is told apart from the others, and has the advice that helps.

The texts are those of onnxruntime-gpu 1.31.1. `JUMPOUT_ONNX_GPU_PYTHON=path/to/python` names an environment with
onnxruntime-gpu and this package, in which the last tests produce them anew; with `[cuda,cudnn]` installed and without
an NVIDIA driver they put a driver in its place that has the wrong version, no GPU, or an error.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from jumpout_export.runtime.cuda import driver_version, explain_driver, explain_loader
from jumpout_export.runtime.installation import INSTALL_CUDA, explain_installation, installed_packages
from jumpout_export.runtime.providers import PROVIDERS

ONNX_GPU = os.environ.get("JUMPOUT_ONNX_GPU_PYTHON", "")
HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()

OPEN = "cannot open shared object file: No such file or directory"
LOADER = {
    "cublas": (
        f"libcublasLt.so.13: {OPEN}",
        (
            "libcublasLt.so.13 is missing, which ONNX Runtime's CUDA provider needs; install it with the others: "
            "pip install 'jumpout-export[onnx-gpu]'"
        ),
    ),
    "curand": (f"libcurand.so.10: {OPEN}", "libcurand.so.10 is missing"),
    "driver": (f"libcuda.so.1: {OPEN}", "there is no NVIDIA driver here: libcuda.so.1 is missing"),
    "glibc": (
        "/lib/x86_64-linux-gnu/libstdc++.so.6: version `GLIBCXX_3.4.30' not found",
        "ONNX Runtime's CUDA provider cannot be loaded: /lib/x86_64-linux-gnu/libstdc++.so.6: version `GLIBCXX_3.4.30'",
    ),
}

CALL = (
    "std::conditional_t<THRW, void, onnxruntime::common::Status> onnxruntime::CudaCall(ERRTYPE, const char*, const "
    "char*, SUCCTYPE, const char*, const char*, int) [with ERRTYPE = cudaError; bool THRW = true; SUCCTYPE = "
    "cudaError; std::conditional_t<THRW, void, common::Status> = void]"
)
SOURCE = "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc"


def of_cuda(code, text):
    """As ONNX Runtime writes it, in one line."""
    return (
        f"{SOURCE}:154 {CALL} {SOURCE}:146 {CALL} CUDA failure {code}: {text} ; GPU=-1 ; hostname=vm ; "
        "file=/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider.cc ; line=355 ; "
        "expr=cudaSetDevice(info_.device_id); \n\n"
    )


DRIVER = {
    "too old": (
        of_cuda(35, "CUDA driver version is insufficient for CUDA runtime version"),
        "the NVIDIA driver is too old for the installed onnxruntime-gpu: it supports CUDA ",
        "update the driver (CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version)",
    ),
    "no device": (
        of_cuda(100, "no CUDA-capable device is detected"),
        "there is an NVIDIA driver but no GPU that this process may use",
        "CUDA_VISIBLE_DEVICES (CUDA failure 100: no CUDA-capable device is detected)",
    ),
    "mismatch": (
        of_cuda(803, "system has unsupported display driver / cuda driver combination"),
        "CUDA itself fails: CUDA failure 803: system has unsupported display driver / cuda driver combination; ",
        "does nvidia-smi work",
    ),
    # Not seen here: in the form of the others, and in that of ONNX Runtime's arena.
    "memory": (of_cuda(2, "out of memory"), "CUDA itself fails: CUDA failure 2: out of memory; ", "is memory free"),
    "arena": (
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 1024",
        "the GPU's memory is too small for it: ",
        "Failed to allocate memory for requested buffer of size 1024",
    ),
}


@pytest.mark.parametrize(("text", "says"), LOADER.values(), ids=LOADER.keys())
def test_what_the_loader_says_is_told_apart(text, says):
    assert explain_loader(text, INSTALL_CUDA).startswith(says)


def test_a_missing_driver_is_not_answered_with_pip():
    reason = explain_loader(LOADER["driver"][0], INSTALL_CUDA)
    assert "docker run --gpus all" in reason
    assert "pip install" not in reason


@pytest.mark.parametrize(("text", "start", "end"), DRIVER.values(), ids=DRIVER.keys())
def test_what_cuda_says_is_told_apart(text, start, end):
    reason = explain_driver(RuntimeError(text))
    assert reason.startswith(start)
    assert end in reason
    assert "onnxruntime_src" not in reason


@pytest.mark.parametrize(
    "text",
    [
        "[ONNXRuntimeError] : 1 : FAIL : Load model from m.onnx failed:Protobuf parsing failed.",
        "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for Conv(11) node with name 'c'",
        "",
    ],
)
def test_a_fault_of_the_file_is_none_of_the_machine(text):
    assert explain_driver(RuntimeError(text)) is None


@pytest.mark.integration
@pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime has the CUDA provider")
def test_the_cpu_package_is_named_with_what_replaces_it():
    version = onnxruntime.__version__
    assert PROVIDERS["cuda"].explain_unusable() == (
        f"the installed onnxruntime {version} has no CUDAExecutionProvider; install one that has: "
        "pip uninstall onnxruntime && pip install 'jumpout-export[onnx-gpu]'; or give it an environment of its own: "
        "python3 -m venv onnxruntime-cuda && onnxruntime-cuda/bin/pip install 'onnxruntime-gpu[cuda,cudnn]', and name "
        "it: --provider-python onnxruntime-cuda/bin/python"
    )
    assert PROVIDERS["cpu"].explain_unusable() is None
    assert explain_installation() is None
    assert installed_packages() == {"onnxruntime": version}


def run_python(code, *paths, python=sys.executable, **environment):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), **environment}
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def distribution(folder, name, version):
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("onnxruntime/__init__.py,,\nonnxruntime/capi/__init__.py,,\n")


@pytest.mark.integration
def test_two_packages_in_one_place_are_found_and_mended(tmp_path):
    (tmp_path / "onnxruntime").symlink_to(Path(onnxruntime.__file__).parent)
    distribution(tmp_path, "onnxruntime", "1.31.1")
    distribution(tmp_path, "onnxruntime-gpu", "1.31.0")
    out = run_python(
        "from jumpout_export.runtime.installation import explain_installation; print(explain_installation()); "
        "from jumpout_export.runtime.providers import PROVIDERS; print(PROVIDERS['cuda'].explain_unusable())",
        tmp_path,
    )
    installation, cuda = out.splitlines()
    assert installation == (
        "onnxruntime 1.31.1 and onnxruntime-gpu 1.31.0 are installed over each other and are one import package: "
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'jumpout-export[onnx-gpu]'"
    )
    if not HAS_CUDA:
        assert (
            cuda == f"the installed onnxruntime {onnxruntime.__version__} has no CUDAExecutionProvider; {installation}"
        )


@pytest.mark.integration
def test_a_package_that_another_folder_hides_does_not_count(tmp_path):
    (tmp_path / "onnxruntime").mkdir()
    distribution(tmp_path, "onnxruntime-gpu", "1.31.1")  # its folder has no __init__.py, so the import passes over it
    out = run_python("from jumpout_export.runtime.installation import *; print(installed_packages())", tmp_path)
    assert out == str(installed_packages())


@pytest.mark.integration
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "onnxruntime is not installed: pip install 'jumpout-export[onnx]', or "),
        ("folder", "the installed onnxruntime is incomplete, "),
        ("import a_missing_library", "onnxruntime cannot be imported (No module named 'a_missing_library'): pip "),
    ],
    ids=["missing", "incomplete", "broken"],
)
def test_an_onnxruntime_that_cannot_be_imported_is_explained(tmp_path, content, says):
    if content:
        (tmp_path / "onnxruntime").mkdir()
        distribution(tmp_path, "onnxruntime-gpu", "1.31.1")
        if content != "folder":
            (tmp_path / "onnxruntime" / "__init__.py").write_text(content)
    # First everything that is needed, then a path on which the other onnxruntime is not.
    out = run_python(
        "import json, sys, jumpout_export.ops, jumpout_export.runtime.providers;"
        "from jumpout_export.cli import info as cli_info;"
        f"sys.path = [{str(tmp_path)!r}, *(place for place in sys.path if 'site-packages' not in place)];"
        "print(json.dumps(cli_info.facts()))"
    )
    facts = json.loads(out)
    for name in ("ONNX Runtime", "ONNX Runtime cpu", "ONNX Runtime cuda"):
        assert says in facts[name]
    if content:
        assert "pip uninstall -y onnxruntime-gpu && pip install 'jumpout-export[onnx-gpu]'" in facts["ONNX Runtime"]


@pytest.fixture(scope="module")
def drivers(tmp_path_factory):
    """A libcuda.so.1 that says what the environment tells it to."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "cuda.c").write_text(
        "#include <stdlib.h>\n"
        'int cuInit(unsigned flags) { return atoi(getenv("DRIVER_ERROR")); }\n'
        'int cuDriverGetVersion(int* version) { *version = atoi(getenv("DRIVER_VERSION")); return 0; }\n'
        "int cuTensorMapEncodeTiled(void) { return 1; }\n"
    )
    command = [compiler, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", "libcuda.so.1", "cuda.c"]
    subprocess.run(command, cwd=folder, check=True)
    return folder


@pytest.mark.integration
def test_the_drivers_version_is_asked_of_the_driver(drivers):
    code = "from jumpout_export.runtime.cuda import driver_version; print(driver_version())"
    out = run_python(code, LD_LIBRARY_PATH=str(drivers), DRIVER_VERSION="12040", DRIVER_ERROR="0")
    assert out == "12.4"
    if not Path("/proc/driver/nvidia/version").exists():
        assert driver_version().startswith("none (libcuda.so.1: cannot open shared object file")


needs_onnx_gpu = pytest.mark.skipif(not ONNX_GPU, reason="JUMPOUT_ONNX_GPU_PYTHON names no environment")


def real_facts(**environment):
    code = "import json; from jumpout_export.cli import info as cli_info; print(json.dumps(cli_info.facts()))"
    return json.loads(run_python(code, python=ONNX_GPU, **environment))


@needs_onnx_gpu
def test_onnxruntime_gpu_is_usable_or_says_what_is_missing():
    facts = real_facts()
    assert "onnxruntime-gpu" in facts["ONNX Runtime"]
    reason = facts["ONNX Runtime cuda"]
    known = [says for _, says in LOADER.values()] + [start for _, start, _ in DRIVER.values()]
    known.append("the installed onnxruntime ")  # incomplete, or onnxruntime over onnxruntime-gpu
    assert reason.startswith("usable") or any(reason.startswith(f"unusable: {says}") for says in known), reason


@needs_onnx_gpu
@pytest.mark.parametrize(
    ("version", "error", "case"),
    [("12040", "0", "too old"), ("13000", "100", "no device"), ("13000", "803", "mismatch")],
)
def test_onnxruntime_gpu_with_a_driver_that_is_no_good(drivers, version, error, case):
    if "there is no NVIDIA driver here" not in real_facts()["ONNX Runtime cuda"]:
        pytest.skip("needs the CUDA libraries, and no driver")
    facts = real_facts(LD_LIBRARY_PATH=str(drivers), DRIVER_VERSION=version, DRIVER_ERROR=error)
    assert facts["ONNX Runtime cuda"].startswith(f"unusable: {DRIVER[case][1]}")
    assert facts["NVIDIA driver, CUDA"] == f"{version[:2]}.{version[3]}"


@needs_onnx_gpu
def test_a_verification_on_cuda_ends_with_3_and_the_same_reason(tmp_path):
    reason = real_facts()["ONNX Runtime cuda"].removeprefix("unusable: ")
    if reason.startswith("usable") or "incomplete" in reason:
        pytest.skip("CUDA is usable here, or nothing is")
    (tmp_path / "factory.py").write_text("from torch import nn\n\ndef network():\n    return nn.Conv2d(1, 2, 3)\n")
    common = [ONNX_GPU, "-m", "jumpout_export", "export", "factory:network", "m.onnx", "--input-shape", "2,1,5,5"]
    done = subprocess.run([*common, "--providers", "cuda"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert reason.split(":")[0] in " ".join(done.stdout.split())
    assert not (tmp_path / "m.onnx").exists()


@needs_onnx_gpu
def test_from_an_environment_without_cuda_the_other_python_says_what_it_lacks(run, tmp_path, monkeypatch):
    """What a CPU environment can show of `--provider-python`: everything up to what the other one lacks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "gpu_factory.py").write_text("from torch import nn\n\ndef network():\n    return nn.Conv2d(1, 2, 3)\n")
    code, out, err = run("info", "--json", "--provider-python", ONNX_GPU)
    assert code == 0, err
    reason = json.loads(out)["ONNX Runtime cuda"].removeprefix("unusable: ")
    if reason.startswith("usable"):
        pytest.skip("CUDA is usable here")
    known = [says.split(".so")[0] for _, says in LOADER.values()] + [start for _, start, _ in DRIVER.values()]
    assert any(reason.startswith(says) for says in known), reason
    code, _, err = run(
        *("export", "gpu_factory:network", "m.onnx", "--input-shape", "2,1,5,5"),
        *("--providers", "cuda", "--provider-python", ONNX_GPU),
    )
    assert code == 3
    assert err.startswith(f"error: --providers cuda: CUDA cannot be used: {reason}")
