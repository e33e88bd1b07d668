"""Assertions for the tests of a project that exports a network, with pytest, unittest or alone.

With pytest they need no import: they are fixtures of the same names, too (`pytest_plugin.py`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from jumpout_export.report import BatchNormReport, Report, VerifyReport

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

__all__ = ["assert_batchnorm_agrees", "assert_export_matches"]


def assert_export_matches(
    path: str | os.PathLike[str],
    model: nn.Module | ExportedProgram | str | os.PathLike[str],
    inputs: Any,
    **options: Any,
) -> VerifyReport:
    """Verifies an ONNX file against a PyTorch model, as `verify_onnx` does, and fails unless it passed.

    What could not be verified has not passed: a provider that is unusable here fails the test. Warnings do not.

    Args:
        path: the ONNX file.
        model: the PyTorch model, exported program or ONNX file that it was made of; not changed.
        inputs: one batch, or an iterable of batches, with or without labels.
        **options: further arguments of `verify_onnx`, such as `providers`.

    Returns:
        The report, which passed.

    Raises:
        AssertionError: if it did not pass; the text names each check with what was measured, the limit and the layer.
        ImportError: if onnx or onnxruntime is missing; whatever else `verify_onnx` raises.
    """
    __tracebackhide__ = True
    from jumpout_export.verify.verify import verify_onnx

    report = verify_onnx(path, model, inputs, **options)
    _require(report)
    return report


def assert_batchnorm_agrees(model: nn.Module, batches: Any, **options: Any) -> BatchNormReport:
    """Checks stored BatchNorm statistics against what serving sees, as `check_batchnorm`, and fails unless they agree.

    Too few samples to decide have not shown that they agree: `inconclusive` fails, and the text says how many it takes.

    Args:
        model: the PyTorch model, with its weights; not changed.
        batches: an iterable of batches as in serving, with or without labels.
        **options: further arguments of `check_batchnorm`, such as `samples` or `fail`.

    Returns:
        The report, whose verdict is `ok`.

    Raises:
        AssertionError: if it is not; the text names each layer with its W, the margin and the cause.
        ValueError: if there is nothing to check; whatever else `check_batchnorm` raises.
    """
    __tracebackhide__ = True
    from jumpout_export.batchnorm.check import check_batchnorm

    report = check_batchnorm(model, batches, **options)
    _require(report)
    return report


def _require(report: Report) -> None:
    __tracebackhide__ = True
    if not report:
        from jumpout_export.render import render_failure

        raise AssertionError(render_failure(report))
