"""The command info, and its facts: versions, the compiled extension, torch's CUDA, each ONNX Runtime provider."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import typer

from jumpout_export.cli.options import Json, ProviderPython

if TYPE_CHECKING:
    from jumpout_export.runtime.provider import Provider


def info(json: Json = False, provider_python: ProviderPython = None) -> None:
    """Show what runs here: versions, the compiled extension, CUDA, ONNX Runtime's providers and why one cannot."""
    import json as json_module

    from jumpout_export.cli.results import say

    found = facts(provider_python)
    if json:
        text = json_module.dumps(found, indent=2)
    else:
        width = max(map(len, found))
        text = "\n".join(f"{name:<{width}}  {value}" for name, value in found.items())
    say(lambda: typer.echo(text))


def facts(provider_python: str | None = None) -> dict[str, object]:
    """Returns what the results on this machine depend on, name to value; what is missing is said, never raised.

    CUDA is tried, not looked up: a provider is usable if a convolution ran on it.

    Args:
        provider_python: the Python of another environment, in which all providers but the CPU are tried.

    Raises:
        ValueError: if that is no program.
    """
    from jumpout_export import ops
    from jumpout_export.environment import environment
    from jumpout_export.runtime.cuda import driver_version
    from jumpout_export.runtime.installation import explain_installation, installed_packages
    from jumpout_export.runtime.providers import PROVIDERS, provider_of, providers_in

    packages = [f"{name} {version}" for name, version in installed_packages().items()]
    with providers_in(provider_python, PROVIDERS):
        usable = {f"ONNX Runtime {name}": _usable(provider_of(name)) for name in PROVIDERS}
    return {
        **environment(),
        **{f"extension {name}": value for name, value in ops.build_info().items()},
        "torch CUDA": _torch_cuda(),
        "NVIDIA driver, CUDA": driver_version(),
        "ONNX Runtime": explain_installation() or ", ".join(packages) or "imported from a folder, not installed",
        **usable,
    }


def _torch_cuda() -> str:
    import torch

    if torch.version.cuda is None:
        return "not in this torch"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return f"{torch.version.cuda}, {torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    reasons = ": " + str(said[0].message).splitlines()[0] if said else ""
    return f"{torch.version.cuda}, but no usable device{reasons}"


def _usable(provider: Provider) -> str:
    reason = provider.explain_unusable()
    return "usable, a convolution ran on it" if reason is None else f"unusable: {reason}"
