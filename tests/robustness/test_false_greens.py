"""The table of docs/false-greens.md: what torch's verify=True passes, and this package does not."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from dataclasses import replace

import pytest
import torch
from support.project import PROJECT
from torch import nn

from jumpout_export import verify_onnx

pytestmark = pytest.mark.integration

TOOLS = str(PROJECT / "tools")


sys.path.insert(0, TOOLS)  # torch.onnx looks for the source of a model by its module's name
table = importlib.import_module("false_greens")
sys.path.remove(TOOLS)
found = {}


def run(name):
    if name not in found:
        found[name] = table.run_case(table.CASES[name])
    return found[name]


@pytest.mark.parametrize("name", table.CASES)
def test_torch_passes_the_defect_and_ours_fails_with_its_cause(name):
    case, result = table.CASES[name], run(name)
    assert result.torch.green == case.green
    assert result.torch.file_written
    assert case.says in result.text, result.report
    if case.check:
        assert set(result.verdicts) == {case.verdict}
        assert result.report.passed == (case.verdict == "warning")


# What the right file of a model has as well is no difference between the two.
ALIKE = ("nan outputs", "Dim.AUTO", "paths")


@pytest.mark.parametrize(
    "name", [name for name, case in table.CASES.items() if case.ours == "verify" and name not in ALIKE]
)
def test_a_wrong_file_fails_against_the_right_file_of_its_model_too(name, tmp_path):
    case = table.CASES[name]
    files = {}
    for kind, made in (("wrong", case), ("right", replace(case, edit=None, options=dict))):
        torch.manual_seed(0)
        model, example = case.model(), case.example()
        files[kind] = tmp_path / f"{kind}.onnx"
        table._torch_verifies(made, model.eval() if kind == "right" else model, example, files[kind])
    assert not verify_onnx(files["wrong"], files["right"], example)
    if "random" not in case.title.lower():
        assert verify_onnx(files["right"], files["right"], example)


@pytest.mark.parametrize("name", [name for name, case in table.CASES.items() if not case.check])
def test_a_child_left_in_train_mode_is_exported_as_the_eval_network_which_torch_does_not_say(name):
    result = run(name)
    assert result.report.passed
    assert not result.torch.warned


def test_the_page_is_current():
    page = table.PAGE.read_text(encoding="utf-8")
    if table.versions() not in " ".join(page.split()):
        pytest.skip(f"the page was made with other versions than {table.versions()}")
    assert page == table.page([run(name) for name in table.CASES]), "run `python tools/false_greens.py`"


def test_a_right_model_passes_both_so_that_a_failure_means_something():
    right = replace(table.CASES["shape"], options=dict, ours="verify")
    result = table.run_case(right)
    assert result.torch.green
    assert not result.verdicts
    assert result.report.passed
    warned = {check.name for check in result.report.checks if check.verdict == "warning"}
    assert warned == {"file/local paths", "file/metadata"}


def test_the_tick_is_read_from_what_torch_prints():
    def half(self):
        from onnxscript import opset18 as op

        return op.Mul(op.Erf(self), op.Constant(value_float=0.5))

    options = {"custom_translation_table": {torch.ops.aten.erf.default: half}}
    result = table.run_case(replace(table.CASES["shape"], options=lambda: options))
    assert not result.torch.green
    assert result.torch.file_written
    assert not result.report.passed


def test_a_case_leaves_logging_warnings_and_the_converter_as_they_were():
    before = logging.root.manager.disable, list(warnings.filters), torch.onnx.ONNXProgram.optimize
    run("checker")
    assert (logging.root.manager.disable, list(warnings.filters), torch.onnx.ONNXProgram.optimize) == before


def test_train_mode_of_the_root_is_warned_about_by_torch():
    assert "training mode" in run("large dropout").torch.warned
    assert nn.Dropout(0.5).training
