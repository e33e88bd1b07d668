"""What the machine and the installed packages are, for reports."""

from __future__ import annotations

import importlib.metadata
import platform
import sys

_PACKAGES = ("jumpout-export", "torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy")


def version_of(package: str) -> str | None:
    """Returns the version of an installed package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment() -> dict[str, str]:
    """Returns versions and machine, for the report, and the threads of torch where it was used."""
    torch = sys.modules.get("torch")
    return {
        "python": platform.python_version(),
        **{name: version for name in _PACKAGES if (version := version_of(name)) is not None},
        "machine": f"{platform.machine()}, {platform.system()}",
        **({} if torch is None else {"threads": str(torch.get_num_threads())}),
        "device": "cpu",
    }
