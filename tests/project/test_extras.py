"""A missing optional package is named together with the command that installs it."""

import sys

import pytest

from jumpout_export.extras import pip_line, require, require_onnx


def test_what_is_there_is_no_error():
    require("json", "report", "never said: ")


def test_what_is_missing_is_named_with_its_reason_and_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "json", None)
    with pytest.raises(ImportError) as error:
        require("json", "report", "pages need json ({error}): ")
    assert str(error.value).startswith("pages need json (import of json halted")
    assert str(error.value).endswith("): pip install 'jumpout-export[report]'")


def test_a_missing_onnx_names_itself(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(
        ImportError, match=r"onnxscript cannot be imported \(.*\); install it with pip install"
    ) as error:
        require_onnx()
    assert error.value.name == "onnxscript"
    assert str(error.value).endswith(pip_line("onnx"))
