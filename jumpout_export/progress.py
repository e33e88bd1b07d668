"""Progress of long calls for whoever passes `progress=show_progress()`: a bar in a notebook, plain lines elsewhere."""

from __future__ import annotations

import html
import math
import sys
import time
from collections.abc import Callable
from typing import Any

_SECONDS_BETWEEN_LINES = 5.0
_SECONDS_BETWEEN_UPDATES = 0.1


def show_progress() -> Callable[[str, int, int | None], None]:
    """Returns a function progress(what, done, total) that shows where the work is.

    In a notebook each step is a bar that is drawn anew in its place; elsewhere it is a line on stderr at its begin, its
    end and every five seconds between.

    Example:
        >>> report = check_batchnorm(model, loader, progress=show_progress())
    """
    ipython: Any = sys.modules.get("IPython")  # whoever runs a notebook has imported it
    shell = ipython.get_ipython() if ipython is not None else None
    if getattr(shell, "kernel", None) is not None:
        return _bars()
    return lines(lambda line: print(line, file=sys.stderr, flush=True))


def lines(write: Callable[[str], object]) -> Callable[[str, int, int | None], None]:
    """Returns a function progress(what, done, total) that writes a line now and then."""
    shown: dict[str, tuple[float, str]] = {}

    def show(what: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        line = f"{what} {done}" if total is None else f"{what} {done}/{total}"
        when, before = shown.get(what, (-math.inf, ""))
        if line == before or (done != total and now - when < _SECONDS_BETWEEN_LINES):
            return
        shown[what] = now, line
        write(line)

    return show


def _bars() -> Callable[[str, int, int | None], None]:
    from IPython.display import HTML, display  # type: ignore[import-not-found,unused-ignore]

    drawn: dict[str, tuple[Any, float]] = {}

    def show(what: str, done: int, total: int | None) -> None:
        handle, when = drawn.get(what, (None, -math.inf))
        now = time.monotonic()
        if done != total and now - when < _SECONDS_BETWEEN_UPDATES:
            return
        bar = "" if total is None else f'<progress value="{done}" max="{total}"></progress> '
        of = f"{done:,}" if total is None else f"{done:,} of {total:,}"
        content = HTML(f"<div>{bar}{html.escape(what)}: {of}</div>")
        if handle is None:
            handle = display(content, display_id=True)
        else:
            handle.update(content)
        drawn[what] = handle, now

    return show
