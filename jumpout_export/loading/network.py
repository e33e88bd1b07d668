"""Networks and their weights, as the command line names them."""

from __future__ import annotations

import importlib
import itertools
import sys
import tempfile
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jumpout_export.disk import move
from jumpout_export.errors import LoadError
from jumpout_export.model.copies import as_safetensors
from jumpout_export.model.wrappers import PARTS
from jumpout_export.text import first_line, some_of

_CONTAINER_KEYS = ("state_dict", "model_state_dict", "model")
# So many tensors that hold no usable numbers are named in one line.
_MOST_UNFIT = 3


def load_model(spec: str) -> nn.Module:
    """Returns the model that the factory `package.module:factory` makes; runs the user's own code.

    The working directory is importable, as with `python -m`.

    Raises:
        LoadError: if the module or factory is missing, fails, or returns something else than an nn.Module.
    """
    model = call_named(spec, "MODEL")
    if not isinstance(model, nn.Module):
        raise LoadError(f"MODEL {spec} must return a torch.nn.Module, got {type(model).__name__}")
    held = itertools.chain(model.named_parameters(), model.named_buffers())
    if empty := [name for name, tensor in held if tensor.is_meta]:
        raise LoadError(
            f"MODEL {spec} must return a module with numbers, but {some_of(empty)} is on the meta device; make it on "
            "the CPU"
        )
    return model


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads a state dict into `model` in place, strictly; nothing is unpickled but tensors.

    A `.pt` or `.pth` file may hold the state dict under `state_dict`, `model_state_dict` or `model`; a `module.` or
    `_orig_mod.` prefix that every name carries is dropped. The model is modified only if every name and shape fits, and
    every tensor holds the numbers themselves: sparse, quantised and meta tensors, and integers for what the model holds
    as floating-point numbers, are refused.

    Raises:
        LoadError: if the file is missing, not readable or does not fit the model.
    """
    expected = model.state_dict()
    state = _named_as(expected.keys(), _read_state(path))
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    both = sorted(expected.keys() & state.keys())
    unfit = {name: why for name in both if (why := _unfit(state[name], expected[name]))}
    wrong = [
        f"{name} is {tuple(state[name].shape)} there and {tuple(expected[name].shape)} in the model"
        for name in both
        if name not in unfit and state[name].shape != expected[name].shape
    ]
    problems = [
        *([f"missing: {some_of(missing)}"] if missing else []),
        *([f"not in the model: {some_of(unexpected)}"] if unexpected else []),
        *([f"shapes differ: {some_of(wrong)}"] if wrong else []),
        *[f"{name} {why}" for name, why in unfit.items()][:_MOST_UNFIT],
    ]
    if problems:
        raise LoadError(f"weights {path} do not fit the model; {'; '.join(problems)}")
    try:
        model.load_state_dict(state)
    except Exception as error:  # a model with code of its own for loading
        raise LoadError(f"weights {path} cannot be loaded into the model: {first_line(error)}") from error


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes the state dict as safetensors; the file is there whole or not at all."""
    with tempfile.TemporaryDirectory(prefix=f".{path.stem}.", dir=path.parent) as folder:
        part = Path(folder) / path.name
        part.write_bytes(as_safetensors(model))
        move(part, path)


def call_named(spec: str, what: str) -> Any:
    """Returns what the callable `package.module:name` returns; LoadError if it cannot be imported or raises."""
    function = _import(spec, what)
    try:
        return function()
    except (Exception, SystemExit) as error:
        _raise_signals(error)
        raise LoadError(f"{what} {spec} raised {type(error).__name__}: {error}") from error


def _raise_signals(error: BaseException) -> None:
    """A subclass of SystemExit is how a signal handler ends the process; only the user's own exit is an error here."""
    if isinstance(error, SystemExit) and type(error) is not SystemExit:
        raise error


def _import(spec: str, what: str) -> Callable[[], Any]:
    module_name, separator, name = spec.partition(":")
    if not (separator and module_name and name):
        program = ", or file.pt2 where the command takes one" if what == "MODEL" else ""
        raise LoadError(f"{what} must be package.module:callable{program}, got {spec!r}")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        _raise_signals(error)
        raise LoadError(f"{what} {spec}: importing {module_name} raised {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        found = "is not callable" if hasattr(module, name) else "does not exist"
        raise LoadError(f"{what} {spec}: {name} {found} in {module_name}")
    return function


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise LoadError(f"weights {path}: there is no such file")
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise LoadError(f"weights {path} must end in .safetensors, .pt or .pth")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Not torch's own text, which advises to unpickle the file.
        raise LoadError(
            f"weights {path} cannot be read as tensors only ({type(error).__name__}); "
            "save model.state_dict() with torch.save, or use safetensors"
        ) from error
    for key in _CONTAINER_KEYS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise LoadError(f"weights {path} hold no state dict (a mapping from names to tensors)")
    if odd := [name for name in state if not isinstance(name, str)]:
        raise LoadError(f"weights {path} hold no state dict: names must be strings, got {odd[0]!r}")
    return dict(state)


def _unfit(value: Tensor, expected: Tensor) -> str:
    """Returns why a tensor cannot be copied into that of the model, nothing if it can."""
    if value.is_meta:
        return "holds no numbers (a meta tensor); save the weights from a device"
    if value.is_quantized:
        return "is quantised; save value.dequantize(), or the float model's weights"
    if value.is_nested:
        return "is a nested tensor; save one tensor"
    if value.layout != torch.strided:
        return f"is stored as {str(value.layout).removeprefix('torch.')}; save value.to_dense()"
    if expected.is_floating_point() and not value.is_floating_point():
        return f"is {str(value.dtype).removeprefix('torch.')} there and floating-point in the model"
    return ""


def _named_as(expected: Container[str], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without what a wrapper put before every name, as far as the model has no such names itself."""
    while state and not any(name in expected for name in state):
        outer = next(iter(state)).partition(".")[0]
        if outer not in PARTS or not all(name.startswith(f"{outer}.") for name in state):
            break
        state = {name.partition(".")[2]: value for name, value in state.items()}
    return state
