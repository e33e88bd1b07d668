"""How long work shows itself on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from jumpout_export.model.batches import Progress as Report
from jumpout_export.progress import lines


@contextlib.contextmanager
def progress_on_stderr(quiet: bool = False) -> Iterator[Report]:
    """Yields a function progress(what, done, total) that shows where the work is."""
    console = Console(stderr=True)
    if quiet:
        yield lambda what, done, total: None
    elif console.is_terminal:
        yield from _bar(console)
    else:
        yield lines(lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True))


def _bar(console: Console) -> Iterator[Report]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                for task in tasks.values():
                    bar.update(task, visible=False)
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total, visible=True)

        yield show
