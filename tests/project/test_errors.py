"""An error about an argument knows its name, and is the ValueError or TypeError that it was without it."""

import pickle

import pytest

from jumpout_export.errors import ArgumentError, ArgumentTypeError, JumpoutExportError


@pytest.mark.parametrize(
    ("kind", "builtin", "other"), [(ArgumentError, ValueError, TypeError), (ArgumentTypeError, TypeError, ValueError)]
)
def test_an_argument_error_is_what_it_was_and_knows_its_argument(kind, builtin, other):
    error = kind("opset", "opset must be an int, got 'x'")
    assert isinstance(error, builtin)
    assert not isinstance(error, (other, JumpoutExportError))
    assert (error.argument, str(error)) == ("opset", "opset must be an int, got 'x'")


def test_it_comes_back_from_another_process():
    error = pickle.loads(pickle.dumps(ArgumentError("path", "path is a folder")))
    assert (type(error), error.argument, str(error)) == (ArgumentError, "path", "path is a folder")
