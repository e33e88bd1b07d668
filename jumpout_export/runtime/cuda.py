"""The CUDA provider, and why it cannot be used here, as loader and driver say: a library, the driver, or no GPU."""

from __future__ import annotations

import ctypes
import re
import shlex
import sys
from pathlib import Path

from jumpout_export.runtime.provider import HERE, Provider
from jumpout_export.runtime.worker import Runtime
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
        """Returns which library ONNX Runtime misses, and what helps."""
        return explain_libraries(self.runtime, self._install)

    def explain_error(self, error: BaseException) -> str | None:
        """Returns what an error of CUDA itself says about this machine."""
        return explain_driver(error, self.runtime)

    def explain_trial(self, problem: str) -> str:
        """Returns that cuDNN is missing, where it is."""
        return explain_cudnn(self.runtime, self._install) or problem

    @property
    def _install(self) -> str:
        python = self.runtime.python
        return f"{python} -m pip install {shlex.quote(self.package)}" if python else self.install


def explain_libraries(runtime: Runtime, install: str) -> str | None:
    """Returns which library keeps ONNX Runtime's CUDA provider from being loaded, and what helps; None if it loads.

    ONNX Runtime itself only logs this, and then runs on the CPU. `install` is the command that installs the libraries.
    """
    if not sys.platform.startswith("linux"):
        return None  # other names there: trying it will tell
    said = runtime.load([f"capi/libonnxruntime_providers_{part}.so" for part in ("shared", "cuda")])
    return explain_loader(said, install) if said else None


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


def explain_cudnn(runtime: Runtime, install: str) -> str | None:
    """Returns that cuDNN is missing, and what helps; None if it can be loaded."""
    if runtime.load([_CUDNN]):
        return f"{_CUDNN} is missing, which convolutions on CUDA need; install it: {install}"
    return None


def explain_driver(error: BaseException, runtime: Runtime = HERE) -> str | None:
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
            f"{runtime.facts()['cuda'] or 'a newer one'} is needed; update the driver ({failure})"
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
