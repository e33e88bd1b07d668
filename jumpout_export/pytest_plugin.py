"""What pytest loads where this package is installed: the assertions of `testing.py` as fixtures.

It imports nothing of this package until a test asks for one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def assert_export_matches(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`jumpout_export.testing.assert_export_matches(path, model, inputs)`: is the ONNX file the model?"""
    from jumpout_export import testing

    return _shown(testing.assert_export_matches, request.node)


@pytest.fixture
def assert_batchnorm_agrees(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`jumpout_export.testing.assert_batchnorm_agrees(model, batches)`: do training and serving agree?"""
    from jumpout_export import testing

    return _shown(testing.assert_batchnorm_agrees, request.node)


def _shown(check: Callable[..., Any], test: pytest.Item) -> Callable[..., Any]:
    """The assertion; what a report that passed says, warnings among it, is in the test's output (`-rP`, JUnit XML)."""

    @functools.wraps(check)
    def checked(*args: Any, **options: Any) -> Any:
        __tracebackhide__ = True
        from jumpout_export.render import verdict_of

        report = check(*args, **options)
        verdict = verdict_of(report)
        test.add_report_section("call", "jumpout-export", f"{verdict.verdict}: {verdict.note}")
        return report

    return checked
