"""The converter's library, read once: torch.onnx parses the sources of its 500 ONNX functions at every export anew.

That is a quarter of the time of a small export, and the functions stay the same as long as the process runs.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

# What was read, by the arguments that it was read with: the opset.
_read: dict[Any, Any] = {}


@contextlib.contextmanager
def library_read_once() -> Iterator[None]:
    """Lets torch.onnx have what it read before; does nothing where this torch reads its library in another way."""
    from torch.onnx._internal.exporter import _registration

    registry = getattr(_registration, "ONNXRegistry", None)
    original = vars(registry or object).get("from_torchlib")
    if not isinstance(original, classmethod) or getattr(original, "reads_once", False):
        yield
        return

    def from_torchlib(kind: Any, *args: Any, **kwargs: Any) -> Any:
        key = kind, args, tuple(sorted(kwargs.items()))
        if key not in _read:
            _read[key] = original.__get__(None, kind)(*args, **kwargs)
        mine = copy.copy(_read[key])  # an export may register functions of its own
        mine.functions = {name: [*functions] for name, functions in mine.functions.items()}
        return mine

    once = classmethod(from_torchlib)
    once.reads_once = True  # type: ignore[attr-defined]
    registry.from_torchlib = once  # type: ignore[union-attr]
    try:
        yield
    finally:
        registry.from_torchlib = original  # type: ignore[union-attr]
