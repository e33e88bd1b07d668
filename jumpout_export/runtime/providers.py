"""The execution providers of ONNX Runtime that a file can be verified on. Another one is an object more, here."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator
from contextvars import ContextVar

from jumpout_export.errors import ArgumentError
from jumpout_export.runtime.cuda import Cuda
from jumpout_export.runtime.elsewhere import Elsewhere, find_python
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
    package="onnxruntime-gpu[cuda,cudnn]",
)
_OPENVINO = Provider(
    "openvino",
    "OpenVINOExecutionProvider",
    # On processors with AMX it would compute in bfloat16. Nothing is cached, unless a folder is named for that.
    settings={"device_type": "CPU", "precision": "FP32"},
    must_repeat=True,
    install="",  # in the place of this one: an environment has one onnxruntime, and the CPU is compared with it
    package="onnxruntime-openvino",
)
PROVIDERS: dict[str, Provider] = {provider.name: provider for provider in (_CPU, _CUDA, _OPENVINO)}
# Those that are in another Python as long as `providers_in` says so.
_ELSEWHERE: ContextVar[dict[str, Provider] | None] = ContextVar("elsewhere", default=None)


def provider_of(name: str) -> Provider:
    """Returns a provider by its name: that of the Python which `providers_in` named, or that of this one."""
    return (_ELSEWHERE.get() or {}).get(name) or PROVIDERS[name]


@contextlib.contextmanager
def providers_in(python: str | os.PathLike[str] | None, names: Iterable[str]) -> Iterator[None]:
    """Lets providers be those of the onnxruntime in another Python, in a process of it that ends with this.

    Args:
        python: the Python; None for this one. Within the same it changes nothing.
        names: what is going to be used; the CPU is always that of this Python.

    Raises:
        ValueError: if there is no such program, or nothing for it to do.
    """
    known = _ELSEWHERE.get()
    if python is None or (known and find_python(python) in {there.runtime.python for there in known.values()}):
        yield
        return
    if all(PROVIDERS[name].is_fallback for name in names):
        able = ", ".join(provider.name for provider in PROVIDERS.values() if not provider.is_fallback)
        text = f"provider_python is for {able}; the CPU is always that of the Python that runs this"
        raise ArgumentError("provider_python", text)
    with contextlib.closing(Elsewhere(python)) as runtime:
        there = {
            name: provider if provider.is_fallback else dataclasses.replace(provider, runtime=runtime)
            for name, provider in PROVIDERS.items()
        }
        token = _ELSEWHERE.set(there)
        try:
            yield
        finally:
            _ELSEWHERE.reset(token)


def fallback() -> Provider:
    """Returns the provider that takes the nodes which no other takes."""
    return next(provider for provider in PROVIDERS.values() if provider.is_fallback)


def provider_choices() -> str:
    """Returns what a comma-separated list of providers may be, for a person."""
    return f"of {', '.join(PROVIDERS)}, separated by commas"


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
