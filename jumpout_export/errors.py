"""The few exceptions a caller may want to catch, and what is wrong with an argument: a ValueError or TypeError."""

from __future__ import annotations

from typing import Any


class JumpoutExportError(Exception):
    """Base class of the errors below."""


class MissingExtensionError(JumpoutExportError, ImportError):
    """The compiled extension `jumpout_export._C` is not there; the message names the command that builds it."""


class NotFoldableError(JumpoutExportError):
    """No deterministic graph equals the model's eval network: it draws random numbers or keeps a state in eval mode.

    Attributes:
        modules: paths of the modules that draw, in call order.
        check: the report's check that fails: `randomness`, `state` or `copy`.
    """

    def __init__(self, message: str, modules: tuple[str, ...] = (), check: str = "randomness") -> None:
        super().__init__(message)
        self.modules = modules
        self.check = check


class ConversionError(JumpoutExportError):
    """The model could not be converted to ONNX as asked (opset, dynamic axes, an unsupported operator)."""


class NotVerifiableError(JumpoutExportError):
    """The check could not be run here, so nothing was proven: for example CUDA was asked for and is unusable."""


class RecalibrationRefusedError(JumpoutExportError):
    """Recalibrating would make the outputs significantly worse, and the caller asked not to; nothing was written."""


class NotAttestableError(JumpoutExportError):
    """The files are not those that the report is about, or it is about none; nothing was signed."""


class LoadError(JumpoutExportError):
    """A model, weights or data named on the command line could not be read; the message says which and why."""


class _OfArgumentError(Exception):
    """What knows the name of the argument that it is about, which the command line translates into an option."""

    def __init__(self, argument: str, text: str) -> None:
        super().__init__(text)
        self.argument = argument

    def __reduce__(self) -> tuple[Any, ...]:  # as a process pool sends it
        return type(self), (self.argument, str(self))


class ArgumentError(_OfArgumentError, ValueError):
    """An argument is out of its range.

    Attributes:
        argument: its name.
    """


class ArgumentTypeError(_OfArgumentError, TypeError):
    """An argument has the wrong type.

    Attributes:
        argument: its name.
    """
