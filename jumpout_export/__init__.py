"""Train ReLU networks with a compiled jumpout, check their BatchNorm, export ONNX files proven free of noise."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

from jumpout_export.after_import import after_import
from jumpout_export.errors import MissingExtensionError

if TYPE_CHECKING:
    from jumpout_export.batchnorm.check import check_batchnorm
    from jumpout_export.batchnorm.monitor import BatchNormMonitor
    from jumpout_export.batchnorm.recalibrate import recalibrate_batchnorm
    from jumpout_export.batchnorm.serving import ServingStatistics
    from jumpout_export.batchnorm.sets import check_batchnorm_sets
    from jumpout_export.export.publish import export_onnx
    from jumpout_export.fold.file.fold_file import fold_onnx
    from jumpout_export.fold.network.folded import fold_model
    from jumpout_export.nn.convert import convert_dropout
    from jumpout_export.nn.functional import JumpoutStatistics, jumpout
    from jumpout_export.nn.init import hendrycks_gimpel_
    from jumpout_export.nn.modules import Jumpout
    from jumpout_export.progress import show_progress
    from jumpout_export.quantized.settings import Quantized
    from jumpout_export.verify.inspect import inspect_onnx
    from jumpout_export.verify.verify import verify_onnx

    __version__: str

__all__ = [  # noqa: RUF022 in the order of the pipeline
    # train
    "Jumpout",
    "JumpoutStatistics",
    "convert_dropout",
    "hendrycks_gimpel_",
    "jumpout",
    # check
    "BatchNormMonitor",
    "ServingStatistics",
    "check_batchnorm",
    "check_batchnorm_sets",
    "recalibrate_batchnorm",
    # ship
    "Quantized",
    "export_onnx",
    "fold_model",
    "fold_onnx",
    "inspect_onnx",
    "verify_onnx",
    # watch
    "show_progress",
]

# Each is imported when it is asked for first: help and wrong usage on the command line are answered without torch.
_MODULES = {
    "BatchNormMonitor": "batchnorm.monitor",
    "Jumpout": "nn.modules",
    "JumpoutStatistics": "nn.functional",
    "Quantized": "quantized.settings",
    "ServingStatistics": "batchnorm.serving",
    "check_batchnorm": "batchnorm.check",
    "check_batchnorm_sets": "batchnorm.sets",
    "convert_dropout": "nn.convert",
    "export_onnx": "export.publish",
    "fold_model": "fold.network.folded",
    "fold_onnx": "fold.file.fold_file",
    "hendrycks_gimpel_": "nn.init",
    "inspect_onnx": "verify.inspect",
    "jumpout": "nn.functional",
    "recalibrate_batchnorm": "batchnorm.recalibrate",
    "show_progress": "progress",
    "verify_onnx": "verify.verify",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value = version("jumpout-export")
    elif name in _MODULES:
        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault(name, value)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def _register() -> None:
    # `import torch` must not fail because of this package: whoever asks for jumpout is told.
    with suppress(MissingExtensionError):
        import_module(f"{__name__}.ops")


# torch loads a program that holds jumpout, and finds `torch.ops.jumpout`, in whichever order the two are imported.
after_import("torch", _register)
