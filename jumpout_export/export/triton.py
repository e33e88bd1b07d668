"""A proven file in a Triton model repository: where it goes, what it may take the place of, and what lies there."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jumpout_export.disk import locked, private_folder, refuse_link, writing
from jumpout_export.errors import ArgumentError, ArgumentTypeError
from jumpout_export.export.statistics import Staged
from jumpout_export.export.triton_config import KINDS, MAX_BATCH_SIZE, configuration
from jumpout_export.onnxfile.data import sha256_of, sha256_of_all
from jumpout_export.onnxfile.manifest import Manifest, manifest_of, read_manifest
from jumpout_export.text import some_of

if TYPE_CHECKING:
    from onnx import ModelProto

_CONFIG = "config.pbtxt"
_MODEL = "model.onnx"
_VERSION = "1"
_REPLACED = "what an export wrote there is replaced as long as nothing of it was changed"


@dataclass(frozen=True)
class Served:
    """A finished file that is to be served."""

    file: Path
    data: Path | None  # the file beside it that its weights lie in, under its final name
    model: ModelProto  # the file, read without its weights
    manifest: Manifest  # of both
    verified: Collection[str]  # the providers it passed on


def check_entry(repository: str | os.PathLike[str] | None, target: Path, providers: Collection[str]) -> Path | None:
    """Returns the folder that a file gets in a Triton model repository, None without a repository.

    Cheap, but for the sha256 of what an older export wrote there.

    Args:
        repository: a folder, or a name for one in an existing folder.
        target: the file that is to be written, whose name without `.onnx` the model has in Triton.
        providers: those it is verified on.

    Raises:
        ValueError: if it cannot be written there, Triton would not serve it where it is verified, or something is in
            its place that no export wrote, or that was changed since.
        TypeError: if the repository is no path.
    """
    if repository is None:
        return None
    if not isinstance(repository, str | os.PathLike):
        raise ArgumentTypeError("triton", f"triton must be a str or path, got {type(repository).__name__}")
    folder, name = Path(repository), target.stem
    if not folder.is_dir() and (folder.exists() or not folder.absolute().parent.is_dir()):
        raise _wrong(f"a model repository is a folder, or a name in an existing one, got {str(folder)!r}")
    if not os.access(folder if folder.exists() else folder.absolute().parent, os.W_OK | os.X_OK):
        raise _wrong(f"the model repository cannot be written to: {str(folder)!r}")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise _wrong(
            f"Triton has the model under the name of the file, which there may hold letters, digits, _ . and -, "
            f"got {name!r}: give the file another name"
        )
    if not set(providers) & KINDS.keys():
        raise _wrong(f"Triton runs a file on {' or '.join(KINDS)}, and it is verified on {', '.join(providers)} alone")
    _check_place(folder / name)
    return folder / name


@contextmanager
def staged_entry(served: Served, place: Path | None, like: Path) -> Iterator[Staged | None]:
    """Writes a file and its configuration to a hidden folder and yields it with its place; None without a place.

    What is still in the hidden folder at the end of the block disappears with it, and so does a model repository that
    was made here and is empty.

    Args:
        served: the file.
        place: its folder in the model repository, as `check_entry` returned it.
        like: the file whose permissions the copies get, if it exists.

    Raises:
        ValueError: if it cannot be written, or `place` has been taken since.
    """
    if place is None:
        yield None
        return
    is_new = not place.parent.exists()
    try:
        with writing(place):
            place.parent.mkdir(exist_ok=True)
        with _hidden_folder(place) as hidden:
            with writing(place):
                _check_place(place)
                folder = hidden / "entry"
                _write(served, folder, place.name)
                for file in _files(folder) if like.exists() else ():
                    shutil.copymode(like, folder / file)
            yield Staged(folder, place)
    finally:
        if is_new and place.parent.exists() and not any(place.parent.iterdir()):
            place.parent.rmdir()


def entry_notes(served: Served, place: Path) -> list[str]:
    """Returns what a report has to say of it: whether requests share batches and why not, and where it is served."""
    unbatched = configuration(served.model, place.name, "", served.verified).unbatched
    batches = (
        f"requests do not share batches (max_batch_size 0), because {unbatched}"
        if unbatched
        else f"requests share batches of up to {MAX_BATCH_SIZE} samples"
    )
    notes = [f"written to {place} for Triton, where {batches}"]
    if "cuda" not in served.verified:
        notes.append(
            "Triton runs it on the CPU alone, where it was verified; for a GPU verify it there, too: "
            "providers (--providers) cpu,cuda"
        )
    return notes


def _write(served: Served, folder: Path, name: str) -> None:
    """Writes the files of an entry: the configuration, and in the folder of its version the file and its manifest."""
    version = folder / _VERSION
    # Triton takes a model of several files as a folder of that name.
    model = version / _MODEL if served.data is None else version / _MODEL / _MODEL
    model.parent.mkdir(parents=True)
    shutil.copyfile(served.file, model)
    if served.data is not None:
        shutil.copyfile(served.data, model.parent / served.data.name)
    config = configuration(served.model, name, served.manifest.model, served.verified)
    (folder / _CONFIG).write_text(config.text, encoding="ascii")
    manifest = dataclasses.replace(served.manifest, config=sha256_of(folder / _CONFIG))
    manifest.write(manifest_of(model))
    for file in _files(folder):
        with (folder / file).open("rb") as handle:
            os.fsync(handle.fileno())


@contextmanager
def _hidden_folder(place: Path) -> Iterator[Path]:
    """A private folder from which what is in it can be renamed to `place`.

    Triton takes every folder in its repository for a model, a hidden one, too, so it lies beside the repository, and
    in there only where that is another file system or cannot be written to.
    """
    beside = place.parent.resolve()
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(private_folder(beside.with_name(f"{beside.name}.{place.name}")))
            probe = folder / "probe"
            probe.touch()
            (moved := place.parent / f"{folder.name}.probe").unlink(missing_ok=True)
            probe.rename(moved)
            moved.unlink()
        except (OSError, ValueError):
            folder = stack.enter_context(private_folder(place))
        yield folder


def _check_place(place: Path) -> None:
    """Raises if something is there that no export wrote, or that was changed since."""
    refuse_link(place, "triton")
    if place.exists() and not place.is_dir():
        raise _wrong(f"{place} is a file, and has to be a folder: move it away")
    if place.exists():
        with writing(place), locked(place.parent):  # another export may be about to replace it
            _check_files(place)


def _check_files(place: Path) -> None:
    """Raises if a folder holds files, and not those that an export wrote."""
    files = _files(place)
    if not files:
        return
    manifests = [file for file in files if file.endswith(manifest_of(Path(_MODEL)).name)]
    try:
        if len(manifests) != 1:
            raise ValueError(f"{some_of(files, 3)}")
        folder, manifest = Path(manifests[0]).parent, read_manifest(place / manifests[0])
        if not manifest.config:
            raise ValueError(f"{manifests[0]} is of an export elsewhere")
    except (OSError, ValueError) as error:
        raise _wrong(
            f"{place} is not replaced, because no export wrote what lies there ({error}); {_REPLACED}: give another "
            "repository or another name to the file, or move it away"
        ) from error
    wanted = {(folder / name).as_posix(): digest for name, digest in {_MODEL: manifest.model, **manifest.data}.items()}
    wanted |= {_CONFIG: manifest.config}
    found = sha256_of_all(place, wanted)
    odd = [name for name in files if name not in wanted and name != manifests[0]]
    odd += [name for name, digest in wanted.items() if found[name] != digest]
    if odd:
        raise _wrong(
            f"{place} is not replaced, because {some_of(sorted(odd), 3)} there was changed or added after the export; "
            f"{_REPLACED}: give another repository or another name to the file, or move it away"
        )


def _files(folder: Path) -> list[str]:
    """Whatever lies in a folder and the folders in it, as paths from there, except folders themselves."""
    paths = folder.rglob("*") if folder.is_dir() else ()
    return sorted(path.relative_to(folder).as_posix() for path in paths if path.is_symlink() or not path.is_dir())


def _wrong(text: str) -> ArgumentError:
    return ArgumentError("triton", text)
