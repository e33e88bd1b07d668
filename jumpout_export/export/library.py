"""The converter's library, read once: torch.onnx parses the sources of its 500 ONNX functions at every export anew.

That is a quarter of the time of a small export, and the functions stay the same as long as the process runs.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

_NAME = "get_torchlib_ops"


@contextlib.contextmanager
def library_read_once() -> Iterator[None]:
    """Lets torch.onnx have what it read before; does nothing where this torch reads its library in another way."""
    from torch.onnx._internal.exporter import _registration

    apis = getattr(_registration, "onnxscript_apis", None)  # loads what it is asked for, when it is asked
    read = getattr(apis, _NAME, None)
    if apis is None or read is None or _NAME in vars(apis):
        yield
        return
    setattr(apis, _NAME, lambda: _read(read))
    try:
        yield
    finally:
        vars(apis).pop(_NAME, None)


@functools.cache
def _read(read: Callable[[], list[Any]]) -> list[Any]:
    return read()
