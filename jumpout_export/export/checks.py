"""Small helpers that turn what was found into report checks."""

from __future__ import annotations

from jumpout_export.report import Check


def counted(name: str, problems: list[str], good: str = "none", most: int = 8) -> Check:
    """Returns a check that passes if nothing was found: measured is the number of problems, limit 0.

    Args:
        name: of the check.
        problems: what was found, one phrase each.
        good: the note if nothing was found.
        most: how many problems the note names.
    """
    note = joined(problems, most) or good
    return Check(name=name, measured=len(problems), limit=0, verdict="fail" if problems else "pass", note=note)


def joined(parts: list[str], most: int = 8) -> str:
    """Returns the first parts in one line, and how many more there are."""
    return "; ".join(parts[:most]) + (f"; and {len(parts) - most} more" if len(parts) > most else "")


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its type if it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
