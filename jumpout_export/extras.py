"""The optional packages, and the command that installs each."""

from __future__ import annotations

import importlib


def pip_line(extra: str) -> str:
    """Returns the command that installs the packages of an extra."""
    return f"pip install 'jumpout-export[{extra}]'"


def require(module: str, extra: str, text: str) -> None:
    """Imports a package of an extra.

    Args:
        module: its name.
        extra: the extra.
        text: of the error before the command that installs it; `{error}` in it stands for why it was not imported.

    Raises:
        ImportError: if it is missing.
    """
    try:
        __import__(module)
    except ImportError as error:
        raise ImportError(text.format(error=error) + pip_line(extra)) from error


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
                f"{name} cannot be imported ({error}); install it with {pip_line('onnx')}", name=name
            ) from error
