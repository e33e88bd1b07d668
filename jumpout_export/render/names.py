"""Long module paths in little room: shortened in the middle, and never two of them alike."""

from __future__ import annotations

from collections.abc import Sequence

# Shares of the room for the head of a name, in the order tried: the end of a module path says most.
_HEADS = (1 / 3, 1 / 2, 2 / 3, 5 / 6, 1 / 6)


def shortened(name: str, length: int, head: float = _HEADS[0]) -> str:
    """Returns `name` in at most `length` characters, its middle left out.

    Args:
        name: a module path.
        length: at least 3.
        head: share of the room for the start of the name, in (0, 1).
    """
    if len(name) <= length:
        return name
    start = max(1, round(head * (length - 1)))
    end = length - 1 - start
    return f"{name[:start]}…{name[len(name) - end :]}"


def shortened_all(names: Sequence[str], length: int) -> list[str]:
    """Returns the names in at most `length` characters; one that would look like another stays as long as it is.

    Args:
        names: module paths; equal ones stay equal.
        length: at least 3.
    """
    attempts = [[shortened(name, length, head) for name in names] for head in _HEADS]
    best = max(attempts, key=lambda attempt: len(set(attempt)))
    owners: dict[str, set[str]] = {}
    for name, short in zip(names, best, strict=True):
        owners.setdefault(short, set()).add(name)
    return [short if len(owners[short]) == 1 else name for name, short in zip(names, best, strict=True)]


def numbered_all(names: Sequence[str], length: int) -> list[str]:
    """Returns the names in at most `length` characters; where two would look alike, each starts with its position.

    For a plot, which has no room for a whole name. Positions count from 1.
    """
    shorts = shortened_all(names, length)
    return [
        short if len(short) <= length else f"{i} {shortened(name, length - len(str(i)) - 1)}"
        for i, (name, short) in enumerate(zip(names, shorts, strict=True), 1)
    ]
