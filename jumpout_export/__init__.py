"""Train ReLU networks with a compiled jumpout, check their BatchNorm, export ONNX files proven free of noise."""

from jumpout_export.nn.convert import convert_dropout
from jumpout_export.nn.functional import JumpoutStatistics, jumpout
from jumpout_export.nn.modules import Jumpout

__all__ = ["Jumpout", "JumpoutStatistics", "convert_dropout", "jumpout"]
