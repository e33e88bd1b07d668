"""What the converter's log collects."""

import logging
import sys
import warnings

import pytest

from jumpout_export.export.converter_log import converter_log


def test_the_converters_log_is_collected_and_everything_restored(capfd):
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "onnxscript")]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    with pytest.raises(ZeroDivisionError), converter_log() as said:
        for logger in loggers:
            logger.warning("from %s", logger.name)
        logging.getLogger("torch.onnx").warning("torchvision is not installed. Skipping x")
        warnings.warn("a warning", UserWarning, stacklevel=1)
        warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated", FutureWarning, stacklevel=1)
        print("a graph", file=sys.stderr)
        raise ZeroDivisionError
    assert said == ["from torch", "from torch.onnx", "from onnxscript", "UserWarning: a warning"]
    assert [(logger.handlers, logger.propagate) for logger in loggers] == before
    assert capfd.readouterr() == ("", "")
    with pytest.warns(UserWarning, match="outside"):
        warnings.warn("outside", UserWarning, stacklevel=1)
