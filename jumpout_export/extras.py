"""The optional packages, and the command that installs each."""

from __future__ import annotations

import functools
import importlib
import re
from importlib import metadata


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
    """Imports packages of the `onnx` extra, all by default, so that a missing or old one is reported before any work.

    Raises:
        ImportError: naming the package that is missing or older than what this package declares, and the pip line that
            installs it.
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
        found, needed = str(getattr(module, "__version__", "")), _oldest().get(name.replace("_", "-"), "")
        if () < _release(found) < _release(needed):
            raise ImportError(
                f"{name} {found} is installed, {needed} or newer is needed; upgrade it with {pip_line('onnx')}",
                name=name,
            )


@functools.cache
def _oldest() -> dict[str, str]:
    """The oldest version of each requirement that pyproject.toml allows; none where the package is not installed."""
    try:
        declared = metadata.requires("jumpout-export") or []
    except metadata.PackageNotFoundError:
        return {}
    bounds = (re.match(r"([\w-]+)(?:\[.*?\])?>=([\d.]+)", requirement) for requirement in declared)
    return {bound[1]: bound[2] for bound in bounds if bound}


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version without its suffix, as `packaging` orders releases: 1.24 is older than 1.24.1."""
    numbers = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, numbers[0].split("."))) if numbers else ()
