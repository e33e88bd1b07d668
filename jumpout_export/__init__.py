"""Train ReLU networks with a compiled jumpout, check their BatchNorm, export ONNX files proven free of noise."""

from jumpout_export.batchnorm.check import check_batchnorm
from jumpout_export.batchnorm.monitor import BatchNormMonitor
from jumpout_export.batchnorm.recalibrate import recalibrate_batchnorm
from jumpout_export.export.publish import export_onnx
from jumpout_export.fold.file.fold_file import fold_onnx
from jumpout_export.fold.network.folded import fold_model
from jumpout_export.nn.convert import convert_dropout
from jumpout_export.nn.functional import JumpoutStatistics, jumpout
from jumpout_export.nn.init import hendrycks_gimpel_
from jumpout_export.nn.modules import Jumpout
from jumpout_export.verify.inspect import inspect_onnx
from jumpout_export.verify.verify import verify_onnx

__all__ = [  # noqa: RUF022 in the order of the pipeline
    # train
    "Jumpout",
    "JumpoutStatistics",
    "convert_dropout",
    "hendrycks_gimpel_",
    "jumpout",
    # check
    "BatchNormMonitor",
    "check_batchnorm",
    "recalibrate_batchnorm",
    # ship
    "export_onnx",
    "fold_model",
    "fold_onnx",
    "inspect_onnx",
    "verify_onnx",
]
