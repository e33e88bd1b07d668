"""What the machine and the installed packages are, for reports."""

from __future__ import annotations

import platform

import torch


def environment() -> dict[str, str]:
    """Returns versions and machine, for the report."""
    import importlib.metadata

    names = ("jumpout-export", "torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy")
    versions: dict[str, str] = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        **versions,
        "machine": f"{platform.machine()}, {platform.system()}",
        "threads": str(torch.get_num_threads()),
        "device": "cpu",
    }
