"""The CUDA provider, and why it cannot be used here, as loader and driver say: a library, the driver, or no GPU."""

from __future__ import annotations

import contextlib
import ctypes
import io
import re
import sys
from pathlib import Path

from jumpout_export.runtime.provider import Provider
from jumpout_export.text import first_line

_DRIVER = "libcuda.so.1"
_CUDNN = "libcudnn.so.9"  # ONNX Runtime opens it only when a convolution needs it
_MISSING = re.compile(r"(\S+\.so[.\d]*): cannot open shared object file")
# In the middle of a line of 1,000 characters about the place in ONNX Runtime's source.
_FAILURE = re.compile(r"CUDA failure (\d+): .*?(?=\s*;|\s*$)", re.MULTILINE)
_MEMORY = re.compile(r"Failed to allocate memory for requested buffer of size \d+")
_TOO_OLD, _NO_DEVICE = 35, 100  # cudaErrorInsufficientDriver, cudaErrorNoDevice


class Cuda(Provider):
    """ONNX Runtime's CUDA provider."""

    def explain_libraries(self) -> str | None:
        """Returns that ONNX Runtime is too old, or which library it misses, and what helps."""
        import onnxruntime

        if not hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
            return (
                f"onnxruntime {onnxruntime.__version__} cannot tell which nodes run on CUDA, 1.24 and later can: "
                "pip install --upgrade 'onnxruntime-gpu[cuda,cudnn]'"
            )
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it did not find
            onnxruntime.preload_dlls()
        return explain_libraries(self.install)

    def explain_error(self, error: BaseException) -> str | None:
        """Returns what an error of CUDA itself says about this machine."""
        return explain_driver(error)

    def explain_trial(self, problem: str) -> str:
        """Returns that cuDNN is missing, where it is."""
        return explain_cudnn(self.install) or problem


def explain_libraries(install: str) -> str | None:
    """Returns which library keeps ONNX Runtime's CUDA provider from being loaded, and what helps; None if it loads.

    ONNX Runtime itself only logs this, and then runs on the CPU. `install` is the command that installs the libraries.
    """
    import onnxruntime

    folder = Path(onnxruntime.__file__).parent / "capi"
    provider = folder / "libonnxruntime_providers_cuda.so"
    if not sys.platform.startswith("linux") or not provider.exists():
        return None  # other names on other systems: trying it will tell
    try:
        # It takes its symbols from the first.
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(provider))
    except OSError as error:
        return explain_loader(str(error), install)
    return None


def explain_loader(text: str, install: str) -> str:
    """Returns what the loader's error about the CUDA provider means, and what helps."""
    missing = _MISSING.search(text)
    if missing is None:
        return f"ONNX Runtime's CUDA provider cannot be loaded: {text}"
    name = Path(missing[1]).name
    if name == _DRIVER:
        return (
            f"there is no NVIDIA driver here: {name} is missing, which comes with the driver and not from pip; "
            "in a container, start it with the GPU (docker run --gpus all)"
        )
    return f"{name} is missing, which ONNX Runtime's CUDA provider needs; install it with the others: {install}"


def explain_cudnn(install: str) -> str | None:
    """Returns that cuDNN is missing, and what helps; None if it can be loaded."""
    try:
        ctypes.CDLL(_CUDNN)
    except OSError:
        return f"{_CUDNN} is missing, which convolutions on CUDA need; install it: {install}"
    return None


def explain_driver(error: BaseException) -> str | None:
    """Returns what an error of CUDA itself says about this machine, and what helps; None for any other error."""
    text = str(error)
    found = _FAILURE.search(text)
    if found is None:
        memory = _MEMORY.search(text)
        return f"the GPU's memory is too small for it: {memory[0]}" if memory else None
    failure, code = found[0], int(found[1])
    if code == _TOO_OLD:
        return (
            f"the NVIDIA driver is too old for the installed onnxruntime-gpu: it supports CUDA {driver_version()}, "
            f"{_built_for()} is needed; update the driver ({failure})"
        )
    if code == _NO_DEVICE:
        return (
            "there is an NVIDIA driver but no GPU that this process may use: look at nvidia-smi and "
            f"CUDA_VISIBLE_DEVICES ({failure})"
        )
    return f"CUDA itself fails: {failure}; does nvidia-smi work, and is memory free on the GPU?"


def driver_version() -> str:
    """Returns the newest CUDA version the NVIDIA driver supports, such as `13.0`, or why there is none."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError as error:
        return f"none ({first_line(error)})"
    version = ctypes.c_int()
    code = driver.cuDriverGetVersion(ctypes.byref(version))
    return f"{version.value // 1000}.{version.value % 1000 // 10}" if code == 0 else f"unknown (error {code})"


def _built_for() -> str:
    import onnxruntime

    return str(getattr(onnxruntime, "cuda_version", None) or "a newer one")
