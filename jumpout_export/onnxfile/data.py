"""Weights beside an ONNX file: a data file whose name and hash tie it to the one file that it belongs to."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from jumpout_export.disk import open_plain
from jumpout_export.onnxfile.metadata import DATA_SHA256
from jumpout_export.onnxfile.walk import ABSOLUTE_PATH, tensors
from jumpout_export.report import Check
from jumpout_export.text import count, joined

if TYPE_CHECKING:
    from onnx import ModelProto, StringStringEntryProto, TensorProto

_DIGITS = 16
# What a tensor may say of the file that its values lie in, and where else it may hold them.
_KEYS = frozenset({"location", "offset", "length", "checksum"})
_VALUES = ("raw_data", "float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")


def tie_data(model: ModelProto, data: Path, name: str) -> Path | None:
    """Renames a data file to `name.<hash of its content>.data` and lets the model's tensors refer to it.

    Two exports never have data files of one name with other content, so that a file which is replaced is never read
    with the weights of another. The model's metadata is given the sha256.

    Args:
        model: changed in place.
        data: the file that all its external tensors lie in.
        name: of the ONNX file it belongs to.

    Returns:
        The new path, in the same folder; None if no tensor was large enough to lie outside, and the file is gone.
    """
    locations = list(_locations(model))
    if not locations:
        data.unlink()
        return None
    digest = sha256_of(data)
    target = data.rename(data.with_name(f"{name}.{digest[:_DIGITS]}.data"))
    for entry in locations:
        entry.value = target.name
    model.metadata_props.add(key=DATA_SHA256, value=digest)
    return target


def data_files(folder: Path, name: str) -> list[Path]:
    """Returns the data files in a folder that belong, or belonged, to an ONNX file of this name."""
    pattern = re.compile(rf"{re.escape(name)}\.[0-9a-f]{{{_DIGITS}}}\.data")
    return sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name))


def data_sizes(path: Path, model: ModelProto) -> dict[str, int]:
    """Returns the files beside an ONNX file that its weights lie in, name to bytes.

    Raises:
        OSError: if one is missing.
    """
    return {name: (path.parent / name).stat().st_size for name in sorted(external_files(model))}


def describe_data(sizes: Mapping[str, int]) -> str:
    """Returns such files as text, with their sizes."""
    return ", ".join(f"{name} ({count(size, 'byte')})" for name, size in sizes.items())


def changed_data(path: Path, model: ModelProto) -> list[str]:
    """Returns what is wrong with the content of a file's data file, where its metadata says what it must be."""
    wanted = [entry.value for entry in model.metadata_props if entry.key == DATA_SHA256]
    if not wanted:
        return []
    wrong = [name for name in sorted(external_files(model)) if sha256_of(path.parent / name) != wanted[0]]
    return [f"{name} does not hold the weights the file was written with (its sha256 differs)" for name in wrong]


def misplaced(folder: Path, tensor: TensorProto) -> str:
    """Returns what is wrong with where a tensor says that its values lie; empty if in one plain file of the folder.

    What is said twice is read in two ways: one reader takes the first, another the last, a third all of it.

    Args:
        folder: of the ONNX file.
        tensor: any of it; nothing is opened.
    """
    if tensor.data_location != tensor.EXTERNAL:
        return ""
    said = Counter(entry.key for entry in tensor.external_data)
    values = {entry.key: entry.value for entry in tensor.external_data}
    location = values.get("location", "")
    if twice := [key for key, times in said.items() if times > 1]:
        return f"it says {said[twice[0]]} times what its {twice[0]!r} is"
    if unknown := sorted(said.keys() - _KEYS):
        return f"it says what its {unknown[0]!r} is, known are {', '.join(sorted(_KEYS))}"
    if any(not re.fullmatch(r"-?\d{1,19}", values[key]) for key in ("offset", "length") if key in values):
        return "its offset or length is no number"
    if any(getattr(tensor, field) for field in _VALUES):
        return "it holds values, and says that they lie elsewhere"
    if not location.isprintable() or not location:
        return f"{location!r} is no file name"
    folder = folder.resolve()
    file = folder / location
    inside = not ABSOLUTE_PATH.match(location) and ".." not in file.parts and file.resolve().is_relative_to(folder)
    if not inside:
        return f"{location} is outside of the model's folder"
    if file.resolve() != file:
        return f"{location} is reached through a symbolic link"
    if not file.is_file():
        return f"{location} is no file"
    return f"{location} has several hard links" if file.stat().st_nlink > 1 else ""


def sha256_of(path: Path) -> str:
    """Returns the sha256 of a file, in hex; raises OSError for what is no regular file."""
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_data(path: Path, model: ModelProto, folder: Path) -> None:
    """Copies the external data of the model at `path` to a folder."""
    for name in external_files(model):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path.parent / name, folder / name)


def external_files(model: ModelProto) -> set[str]:
    """Returns the names of the files that hold tensors of the model."""
    return {entry.value for entry in _locations(model)}


def _locations(model: ModelProto) -> Iterator[StringStringEntryProto]:
    """The entries that say in which file a tensor lies."""
    for tensor in tensors(model):
        if tensor.data_location == tensor.EXTERNAL:
            yield from (entry for entry in tensor.external_data if entry.key == "location")


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
        return sha256_of(path)
    except OSError:
        return ""
