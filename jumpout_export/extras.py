"""The optional packages the export needs."""

from __future__ import annotations

import importlib


def require_onnx(*names: str) -> None:
    """Imports the packages of the `onnx` extra, so that a missing one is reported before any work.

    Args:
        names: packages to import; default onnx, onnxscript and onnxruntime.

    Raises:
        ImportError: naming the missing package and the pip line that installs it.
    """
    for name in names or ("onnx", "onnxscript", "onnxruntime"):
        try:
            module = importlib.import_module(name)
            if (
                getattr(module, "__file__", None) is None
            ):  # what is left where onnxruntime and onnxruntime-gpu both were
                raise ImportError(f"only a part of {name} is left; uninstall every package of it first")
        except ImportError as error:
            raise ImportError(
                f"{name} cannot be imported ({error}); install it with pip install 'jumpout-export[onnx]'", name=name
            ) from error
