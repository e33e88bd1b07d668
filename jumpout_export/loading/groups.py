"""Which samples of a folder or an `.npz` belong together, as the command line says it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from jumpout_export.errors import LoadError
from jumpout_export.loading.data import ArrayFile, ImageFolder


def with_groups(batches: Any, groups: str) -> Any:
    """Returns batches whose entry `groups` names what tells the groups of their samples apart.

    Args:
        batches: what `load_data` returned.
        groups: for a folder a regular expression that is searched in `<class>/<image>`; its groups, or else what it
            matches, are what samples of one group have in common. For an `.npz` the name of an array (N,). Other
            batches have such an entry of their own.

    Raises:
        LoadError: if the pattern is none or matches nothing in the path of an image, or there is no such array.
    """
    if isinstance(batches, ImageFolder):
        return _Grouped(batches, groups, _keys(batches, groups))
    if isinstance(batches, ArrayFile):
        return _Grouped(batches, groups, batches.entry(groups))
    return batches


class _Grouped:
    """Batches as dicts, with one entry more."""

    def __init__(self, batches: ImageFolder | ArrayFile, name: str, keys: list[Any]) -> None:
        self._batches, self._name, self._keys = batches, name, keys
        self.shuffled = isinstance(batches, ImageFolder)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        start = 0
        for batch in self._batches:
            named = {"inputs": batch[0], "labels": batch[1]} if isinstance(batch, tuple) else {"inputs": batch}
            end = start + len(named["inputs"])
            yield named | {self._name: self._keys[start:end]}
            start = end


def _keys(folder: ImageFolder, pattern: str) -> list[Any]:
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise LoadError(f"--groups {pattern!r} is no regular expression: {error}") from error
    keys = []
    for file, _ in folder.files:
        found = search(f"{file.parent.name}/{file.name}")
        if found is None:
            raise LoadError(
                f"--groups {pattern!r} matches nothing in {file.parent.name}/{file.name}; it has to match in the path "
                "of every image, for example '^[^_]*' for the part before the first _"
            )
        keys.append(found.groups() or found.group())
    return keys
