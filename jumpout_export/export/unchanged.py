"""Whether a file that is looked at stayed the same file while it was looked at."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from jumpout_export.export.checks import joined
from jumpout_export.export.external import sha256_of
from jumpout_export.report import Check


def sha256_of_all(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Returns the sha256 of each file of a folder, name to hex; empty text for one that cannot be read."""
    return {name: _sha256(folder / name) for name in names}


def unchanged_checks(folder: Path, before: dict[str, str]) -> list[Check]:
    """Returns a failed check if a file is no longer what it was; a report must not name the hash of another file.

    Args:
        folder: of the files.
        before: what `sha256_of_all` returned before the files were looked at.
    """
    now = sha256_of_all(folder, before)
    changed = [name for name, digest in before.items() if now[name] != digest]
    if not changed:
        return []
    note = f"the file was changed while it was looked at, so nothing is known of it: {joined(changed)}; run this again"
    return [Check(name="file/unchanged", measured=len(changed), limit=0, verdict="fail", note=note)]


def _sha256(path: Path) -> str:
    try:
        return sha256_of(path) if path.is_file() else ""  # a pipe would never end
    except OSError:
        return ""
