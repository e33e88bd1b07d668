"""What torch's converter says while it works, in whatever way it says it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

# torch gives these loggers handlers of their own and cuts their propagation, so each must be caught by itself.
_LOGGERS = (
    "torch",
    "torch.onnx",
    "torch.export",
    "torch._dynamo",
    "torch.fx.experimental.symbolic_shapes",
    "onnxscript",
    "onnx_ir",
)
# What the converter (torch 2.9 to 2.13) says of itself at every export, whatever the model.
_EXPECTED = ("torchvision is not installed", "isinstance(treespec, LeafSpec)", "_check_is_size will be removed")


@contextlib.contextmanager
def converter_log() -> Iterator[list[str]]:
    """Collects warnings, log records from WARNING up and stderr prints while it is open; restores everything.

    Yields:
        The lines said so far, each once, without what the converter says at every export.
    """
    lines: list[str] = []
    handler = _Lines(lines)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    saved = [(logger, logger.handlers, logger.propagate) for logger in loggers]
    printed = io.StringIO()
    try:
        for logger in loggers:
            logger.handlers, logger.propagate = [handler], False
        # torch.export prints the graph it had traced to stderr when it fails.
        with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stderr(printed):
            warnings.simplefilter("always")
            try:
                yield lines
            finally:
                for warning in caught:
                    _add(lines, f"{warning.category.__name__}: {warning.message}")
    finally:
        for logger, handlers, propagate in saved:
            logger.handlers, logger.propagate = handlers, propagate


class _Lines(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        _add(self._lines, record.getMessage())


def _add(lines: list[str], text: str) -> None:
    line = text.strip().splitlines()[0] if text.strip() else ""
    if line and line not in lines and not any(part in line for part in _EXPECTED):
        lines.append(line)
