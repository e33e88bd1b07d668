"""Which ONNX Runtime is installed, and whether several packages of it lie over each other."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

from jumpout_export.extras import pip_line
from jumpout_export.text import first_line

INSTALL_CPU = pip_line("onnx")
INSTALL_CUDA = pip_line("onnx-gpu")


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


def _again(packages: dict[str, str]) -> str:
    """The commands that put one ONNX Runtime in the place of whatever is there."""
    names = " ".join(packages) or "onnxruntime onnxruntime-gpu"
    return f"pip uninstall -y {names} && {INSTALL_CUDA if 'onnxruntime-gpu' in names else INSTALL_CPU}"
