"""The execution providers of ONNX Runtime that a file can be verified on. Another one is an object more, here."""

from __future__ import annotations

from collections.abc import Iterable

from jumpout_export.runtime.cuda import Cuda
from jumpout_export.runtime.installation import INSTALL_CUDA
from jumpout_export.runtime.provider import Provider

_CPU = Provider(
    "cpu",
    "CPUExecutionProvider",
    is_fallback=True,
    must_repeat=True,
    limited=True,
    about_dropout=(
        "on the CPU, ONNX Runtime's Dropout starts each run from the next seed, so its first value stays dropped or "
        "kept for thousands of runs: call onnxruntime.set_seed with a random number before each run, as was done here"
    ),
)
_CUDA = Cuda(
    "cuda",
    "CUDAExecutionProvider",
    # TensorFloat-32 rounds to 10 bits and is on by default; an exhaustive search may choose other algorithms each time.
    settings={"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"},
    install=INSTALL_CUDA,
)
PROVIDERS: dict[str, Provider] = {provider.name: provider for provider in (_CPU, _CUDA)}


def fallback() -> Provider:
    """Returns the provider that takes the nodes which no other takes."""
    return next(provider for provider in PROVIDERS.values() if provider.is_fallback)


def provider_choices() -> str:
    """Returns what a comma-separated list of providers may be, for a person."""
    return f"{', '.join(PROVIDERS)} or {','.join(PROVIDERS)}"


def check_providers(providers: Iterable[str]) -> tuple[str, ...]:
    """Returns the provider names, each once.

    Raises:
        ValueError: if one is unknown or there is none.
    """
    names = (providers,) if isinstance(providers, str) else tuple(dict.fromkeys(providers))
    unknown = [name for name in names if name not in PROVIDERS]
    if unknown or not names:
        raise ValueError(f"providers must be of {', '.join(PROVIDERS)}, got {', '.join(map(repr, unknown)) or 'none'}")
    return names
