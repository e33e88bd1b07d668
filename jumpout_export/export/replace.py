"""A finished file takes the place of an older one, with its weights and golden data, whenever the process is killed."""

from __future__ import annotations

from pathlib import Path

from jumpout_export.disk import locked, move, replace_file
from jumpout_export.export.statistics import Staged
from jumpout_export.onnxfile.data import data_files
from jumpout_export.onnxfile.manifest import FOLDER, publish, withdrawn
from jumpout_export.signals import defer_signals


def replace_export(
    file: Path,
    data: Path | None,
    target: Path,
    golden: Path | None,
    statistics: Staged | None = None,
    manifest: Path | None = None,
    entry: Staged | None = None,
) -> None:
    """Moves everything to its place; killed at any moment it leaves no file beside the data of another.

    The weights come first, under a name that no other content has; the older golden data and the older entry of a
    model repository are away while the file is replaced, and safetensors with new statistics are there before it. The
    older manifest is away before anything is moved, and the new one is published after everything: no manifest ever
    describes what is not there. An error or an interrupt before the file is replaced takes all of it back; a command
    is not interrupted any more from the first move on. Two calls for a folder wait for each other. Weights that the
    older file used, or that a killed process left, are removed at the end.

    Args:
        file: the finished file, in the file system of `target`.
        data: the file that its weights lie in, already under its final name, or None.
        target: the place of the file; the weights come beside it.
        golden: finished golden data, or None. It is `FOLDER/X/test_data_set_0` and becomes `FOLDER/test_data_set_0`.
        statistics: finished safetensors and their place, or None.
        manifest: the finished manifest, or None.
        entry: the finished folder for a model repository and its place, or None.

    Raises:
        OSError: if a file cannot be moved.
    """
    folders = [Staged(golden, golden.parents[1] / FOLDER)] if golden else []
    folders += [entry] if entry else []
    kept = _aside(statistics) if statistics else None
    with locked(target.parent, *([entry.place.parent] if entry else [])):
        file.stat()  # from here on, that it is gone means that it was moved
        older = data_files(target.parent, target.name)
        weights = target.with_name(data.name) if data else None
        defer_signals()
        with withdrawn(target, file):
            try:
                if data and weights:
                    replace_file(data, weights, like=target)  # as private as the file itself
                for folder in folders:
                    if folder.place.exists():
                        move(folder.place, _aside(folder))
                if statistics and kept:
                    if statistics.place.exists():
                        move(statistics.place, kept)
                    replace_file(statistics.file, statistics.place, like=kept if kept.exists() else target)
                replace_file(file, target)
            finally:
                if file.exists():
                    if weights and weights not in older:
                        weights.unlink(missing_ok=True)
                    for folder in folders:
                        if _aside(folder).exists():
                            move(_aside(folder), folder.place)
                    if statistics and kept:
                        _take_back(statistics, kept)
                else:
                    for folder in folders:
                        move(folder.file, folder.place, like=_aside(folder))
        if manifest:
            publish(manifest, target)
        for path in older:
            if path != weights:
                path.unlink(missing_ok=True)


def _aside(staged: Staged) -> Path:
    """Where the older one is as long as it may have to be put back."""
    return staged.file.with_name("older")


def _take_back(statistics: Staged, older: Path) -> None:
    """Puts the older safetensors back, or leaves none where there were none."""
    if older.exists():
        move(older, statistics.place)
    elif not statistics.file.exists():
        statistics.place.unlink(missing_ok=True)
