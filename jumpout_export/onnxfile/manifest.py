"""The manifest beside an exported file: which files were proven together, each by its sha256.

`model.manifest.json` is what `export` and `fold` publish last, when everything it names is at its place, and take away
before they replace anything. `inspect`, `verify` and the replay in C++ (cpp/replay/manifest.cpp) check it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jumpout_export.disk import move, open_plain, replace_file
from jumpout_export.onnxfile.data import sha256_of, sha256_of_all
from jumpout_export.report import Check, counted
from jumpout_export.text import parse_json

# Where golden data lies, in ONNX's own layout.
FOLDER = "test_data_set_0"
CHECK = "file/manifest"
# Rises when a reader of the one before cannot take what is written now.
VERSION = 1
_SUFFIX = ".manifest.json"
_MOST_BYTES = 1 << 20
_DIGITS = 64


@dataclass(frozen=True)
class Manifest:
    """What was proven together; every digest is a sha256 in hex."""

    model: str  # digest of the ONNX file
    data: Mapping[str, str] = field(default_factory=dict)  # of the files beside it that its weights lie in, by name
    golden: Mapping[str, str] = field(default_factory=dict)  # of `input_0.pb, ..., output_0.pb, ...`, by name
    versions: Mapping[str, str] = field(default_factory=dict)  # of the packages that made and verified it
    verdicts: Mapping[str, str] = field(default_factory=dict)  # of the proof: by provider, and of BatchNorm
    config: str = ""  # of the configuration of a server that it was written for, whose users may change it

    def write(self, file: Path) -> Path:
        """Writes it to a file, keys sorted, and returns that."""
        document = {"kind": "manifest", "manifest_version": VERSION, **vars(self)}
        if not self.config:
            del document["config"]
        file.write_text(json.dumps(document, indent=1, sort_keys=True, ensure_ascii=True) + "\n", encoding="utf-8")
        return file


def manifest_of(path: Path) -> Path:
    """Returns where the manifest of an ONNX file lies."""
    return path.with_suffix(_SUFFIX)


def digests_of(file: Path, data: Path | None, golden: Path | None) -> Manifest:
    """Returns the manifest of finished files that have their final names: the ONNX file, its weights, golden data."""
    files = sorted(_golden_files(golden)) if golden else []
    return Manifest(
        model=sha256_of(file),
        data={data.name: sha256_of(data)} if data else {},
        golden={one.name: sha256_of(one) for one in files},
    )


@contextmanager
def withdrawn(target: Path, file: Path) -> Iterator[None]:
    """Takes the manifest of an older file away while the block replaces it, and puts it back if that was not done.

    Args:
        target: the ONNX file.
        file: what takes its place, in a folder of its own on the same file system; gone from there once it did.
    """
    place, aside = manifest_of(target), file.with_name("older" + _SUFFIX)
    if place.exists():
        move(place, aside)
    try:
        yield
    finally:
        if file.exists() and aside.exists():
            move(aside, place)


def publish(manifest: Path, target: Path) -> None:
    """Moves a finished manifest to its place beside the ONNX file that it describes, which is there by now."""
    replace_file(manifest, manifest_of(target), like=target)


def manifest_checks(path: Path, data: Iterable[str]) -> tuple[list[Check], list[str]]:
    """Returns whether an ONNX file and what lies beside it are what its manifest says, and what there is to know.

    Args:
        path: the ONNX file.
        data: names of the files beside it that its weights lie in.

    Returns:
        The check `file/manifest` and notes; a note alone where there is no manifest.
    """
    place = manifest_of(path)
    if not place.exists() and not place.is_symlink():
        return [], [f"there is no {place.name} beside it, so whether it was changed after its export is not known"]
    notes: list[str] = []
    try:
        manifest = read_manifest(place)
    except (OSError, ValueError, RecursionError) as error:
        return [counted(CHECK, [f"{place.name} cannot be read: {error}"])], notes
    problems = _differing(path.parent, {path.name: manifest.model})
    problems += _differing(path.parent, manifest.data)
    problems += [f"{name} holds weights and is not in {place.name}" for name in sorted(set(data) - set(manifest.data))]
    golden = path.parent / FOLDER
    if manifest.golden and not golden.is_dir():
        notes.append(f"its golden data does not lie in {FOLDER} beside it and was not looked at")
    elif manifest.golden:
        problems += [f"{FOLDER}/{problem}" for problem in _differing(golden, manifest.golden)]
        extra = {file.name for file in _golden_files(golden)} - set(manifest.golden)
        problems += [f"{FOLDER}/{name} is not in {place.name}" for name in sorted(extra)]
    files = 1 + len(manifest.data) + (len(manifest.golden) if golden.is_dir() else 0)
    return [counted(CHECK, problems, f"{files} files are those that {place.name} names")], notes


def read_manifest(place: Path) -> Manifest:
    """Returns what a manifest says of files.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is none.
    """
    with open_plain(place) as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError("it is larger than a manifest is")
    document = parse_json(content)
    if not isinstance(document, dict) or document.get("kind") != "manifest":
        raise ValueError("it is no manifest")
    if document.get("manifest_version") != VERSION:
        raise ValueError(f"its version is {document.get('manifest_version')!r}, this package reads {VERSION}")
    return Manifest(
        model=_digest(document.get("model")),
        data=_digests(document, "data"),
        golden=_digests(document, "golden"),
        config=_digest(document["config"]) if "config" in document else "",
    )


def _golden_files(folder: Path) -> Iterator[Path]:
    """The inputs and outputs in a folder; whatever else lies there belongs to somebody else."""
    return (file for kind in ("input", "output") for file in folder.glob(f"{kind}_*.pb"))


def _differing(folder: Path, wanted: Mapping[str, str]) -> list[str]:
    """What is wrong with files of a folder that must have these digests."""
    found = sha256_of_all(folder, wanted)
    return [
        f"{name} is not the file that was proven (its sha256 differs)" if found[name] else f"{name} cannot be read"
        for name, digest in wanted.items()
        if found[name] != digest
    ]


def _digests(document: dict[str, Any], key: str) -> dict[str, str]:
    """The digests of files by name; only names of one folder, so that no path of a manifest leads out of it."""
    digests = document.get(key)
    if not isinstance(digests, dict):
        raise ValueError(f"its {key!r} is no table of digests")
    if odd := [
        name for name in digests if name in ("", ".", "..") or not name.isprintable() or set(name) & {"/", "\\"}
    ]:
        raise ValueError(f"{odd[0]!r} is no file name")
    return {name: _digest(digest) for name, digest in digests.items()}


def _digest(value: object) -> str:
    if not isinstance(value, str) or len(value) != _DIGITS or set(value) - set("0123456789abcdef"):
        raise ValueError("a digest in it is no sha256")
    return value
