"""One line on stderr per exception: the option that an argument belongs to stands before it, whatever the message."""

import pytest

from jumpout_export.cli.errors import run as run_app
from jumpout_export.errors import (
    ArgumentError,
    ArgumentTypeError,
    ConversionError,
    LoadError,
    NotVerifiableError,
)
from jumpout_export.exit_codes import FAILED, NOT_VERIFIED, WRONG_USAGE


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ArgumentError("opset", "must be 18"), WRONG_USAGE, "error: --opset: must be 18"),
        (ArgumentTypeError("path", "path must be"), WRONG_USAGE, "error: OUT.onnx: path must be"),
        (ArgumentError("dynamic_axes", "no axis"), WRONG_USAGE, "error: --dynamic: no axis"),
        (ArgumentError("seed", "seed is odd"), WRONG_USAGE, "error: seed is odd"),
        # A message of the user's own code that happens to begin with a word of the library.
        (ValueError("path of the samples is empty"), WRONG_USAGE, "error: path of the samples is empty"),
        (TypeError("opset"), WRONG_USAGE, "error: opset"),
        (ValueError(""), WRONG_USAGE, "error: "),
        (LoadError("no file"), WRONG_USAGE, "error: no file"),
        (ConversionError("no operator"), FAILED, "error: no operator"),
        (NotVerifiableError("no device"), NOT_VERIFIED, "error: no device"),
        (ImportError("no onnx"), NOT_VERIFIED, "error: no onnx"),
    ],
    ids=str,
)
def test_every_exception_is_one_line_and_an_exit_code(error, code, line, capsys):
    def app():
        raise error

    with pytest.raises(SystemExit) as end:
        run_app(app)
    assert end.value.code == code
    assert capsys.readouterr().err == f"{line}\n"
