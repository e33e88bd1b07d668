"""The optional packages, and the command that installs each."""

from __future__ import annotations

import importlib


def pip_line(extra: str) -> str:
    """Returns the command that installs the packages of an extra."""
    return f"pip install 'jumpout-export[{extra}]'"


def require(module: str, extra: str, text: str) -> None:
    """Imports a package of an extra.

    Raises:
        ImportError: if it is missing: `text`, in which `{error}` stands for why it was not imported, and the command
            that installs it.
    """
    try:
        __import__(module)
    except ImportError as error:
        raise ImportError(text.format(error=error) + pip_line(extra)) from error


def require_onnx(*names: str) -> None:
    """Imports packages of the `onnx` extra, all by default, so that a missing one is reported before any work.

    Raises:
        ImportError: naming the missing package and the pip line that installs it.
    """
    for name in names or ("onnx", "onnxscript", "onnxruntime"):
        try:
            module = importlib.import_module(name)
            # Without a file: what is left where onnxruntime and onnxruntime-gpu both were.
            if getattr(module, "__file__", None) is None:
                raise ImportError(f"only a part of {name} is left; uninstall every package of it first")
        except ImportError as error:
            raise ImportError(
                f"{name} cannot be imported ({error}); install it with {pip_line('onnx')}", name=name
            ) from error
