"""What the converter's log collects."""

import logging
import sys
import warnings

import pytest
import torch
from torch import nn

from jumpout_export.export.converter_log import converter_log
from jumpout_export.export.publish import export_onnx
from jumpout_export.report import counted


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


@pytest.mark.integration
def test_what_the_converter_says_is_told_of_an_export_that_failed_only(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model, x = nn.LSTM(8, 4, batch_first=True).eval(), torch.randn(4, 5, 8)  # torch warns about its weights
    report = export_onnx(model, tmp_path / "m.onnx", x)
    assert report
    assert not [note for note in report.notes if "converter" in note]
    monkeypatch.setattr("jumpout_export.export.steps.metadata_check", lambda _: counted("file/metadata", ["none"]))
    report = export_onnx(model, tmp_path / "m.onnx", x)
    assert not report
    assert [note for note in report.notes if note.startswith("the converter says: UserWarning: ")]
