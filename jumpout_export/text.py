"""Text: how what was found is put into words, the first line of an error, and JSON that can be read in one way."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any


def joined(parts: list[str], most: int = 8) -> str:
    """Returns the first parts in one line, and how many more there are."""
    return "; ".join(parts[:most]) + (f"; and {len(parts) - most} more" if len(parts) > most else "")


def names_of(names: str | Iterable[str]) -> tuple[str, ...]:
    """Returns the names as a tuple; one alone is not taken for its letters."""
    return (names,) if isinstance(names, str) else tuple(names)


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its type if it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def count(n: int, noun: str) -> str:
    """Returns `1 layer`, `5 layers`, `4,096 samples`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def some_of(names: list[str], most: int = 5) -> str:
    """Returns the first names, separated by commas, and how many more there are; `nothing` for none."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown or "nothing"


def parse_json(text: str | bytes) -> Any:
    """Returns what JSON says.

    Raises:
        ValueError: if it is none, or says a name twice: one reader takes the first, another the last.
        RecursionError: if it is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_each_once)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it says `{next(name for name in names if names.count(name) > 1)}` twice")
    return found
