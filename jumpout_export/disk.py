"""Files that appear whole or not at all: a private folder to work in, a lock, renames, and one line if that fails."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from jumpout_export.errors import ArgumentError, ArgumentTypeError
from jumpout_export.signals import defer_signals
from jumpout_export.text import first_line

_SUFFIX = ".unfinished"
# Nobody holds a folder for longer than a few renames take.
_PATIENCE = 60.0


def check_target(path: str | os.PathLike[str], name: str, suffix: str = ".onnx") -> Path:
    """Returns the path of a file that is to be written; messages call it `name`.

    Raises:
        ValueError: if no file with that suffix can be written there. A symbolic link is refused: whether the link or
            the file that it leads to is meant to be replaced nobody can know, and a cache of downloads is full of them.
        TypeError: if it is no path.
    """
    if not isinstance(path, str | os.PathLike):
        raise ArgumentTypeError(name, f"{name} must be a str or path, got {type(path).__name__}")
    target = Path(path)
    if target.suffix != suffix:
        raise ArgumentError(name, f"{name} must end in {suffix}, got {str(target)!r}")
    if not target.parent.is_dir():
        raise ValueError(f"the folder of {name} does not exist: {str(target.parent)!r}")
    if target.is_dir():
        raise ArgumentError(name, f"{name} is a folder, not a file: {str(target)!r}")
    require_plain(target, name)
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise ValueError(f"the folder of {name} cannot be written to: {str(target.parent)!r}")
    return target


def require_plain(target: Path, name: str) -> None:
    """Raises a ValueError if what a file is to be written over is a symbolic link, or no file; messages call it `name`.

    A rename would put a file in the place of a device or a pipe, such as `/dev/null`, for everybody.
    """
    refuse_link(target, name)
    if target.exists() and not target.is_file():
        raise ArgumentError(name, f"{name} is a device, a pipe or a folder, which is not replaced: {str(target)!r}")


def refuse_link(target: Path, name: str) -> None:
    """Raises a ValueError if what is to be written is a symbolic link; messages call it `name`."""
    if target.is_symlink():
        to = os.readlink(target)
        raise ArgumentError(name, f"{name} is a symbolic link to {to!r}: name that file, or remove the link")


@contextlib.contextmanager
def private_folder(target: Path) -> Iterator[Path]:
    """Yields a hidden folder beside `target`, on its file system; nothing of it is left, however the block ends.

    Only SIGKILL or a power cut leave it behind: the next call for the same target removes it. A folder whose process
    lives is locked, and stays.

    Raises:
        ValueError: if no folder can be made there.
    """
    with contextlib.ExitStack() as stack:
        with writing(target), locked(target.parent):
            _remove_abandoned(target)
            made = tempfile.TemporaryDirectory(
                prefix=f".{target.name}.", suffix=_SUFFIX, dir=target.parent, ignore_cleanup_errors=True
            )
            folder = Path(stack.enter_context(made))
            _lock(stack.enter_context(_opened(folder)))
        yield folder


@contextlib.contextmanager
def locked(*folders: Path) -> Iterator[None]:
    """Keeps other exports into these folders waiting while the block runs; leaves no lock file.

    Where the file system or the platform has no locks the block runs without one.

    Raises:
        OSError: if another process does not let go for a minute.
    """
    # Each once, or the second would wait for the first; in an order that is the same for everybody.
    distinct = {(state.st_dev, state.st_ino): folder for folder in folders for state in [folder.stat()]}
    with contextlib.ExitStack() as stack:
        end = time.monotonic() + _PATIENCE
        for _, folder in sorted(distinct.items()):
            handle = stack.enter_context(_opened(folder))
            while _lock(handle) is False:
                if time.monotonic() > end:
                    raise TimeoutError(f"another process has locked the folder {folder} for {_PATIENCE:.0f} s")
                time.sleep(0.01)
        yield


def open_plain(path: Path) -> BufferedReader:
    """Opens a file to read, and nothing else: a pipe would wait for a writer, a device may never end.

    Raises:
        OSError: if it cannot be opened, or is no regular file; symbolic links are followed.
    """
    # Without waiting, in case the path has become a pipe since somebody looked; a regular file takes no notice.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "is no regular file", str(path))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def replace_file(file: Path, target: Path, like: Path | None = None) -> None:
    """Moves a finished file to its place; after a power cut there is the old file or the whole new one.

    Args:
        file: in the file system of `target`.
        target: its place.
        like: as of `move`.

    Raises:
        OSError: if that is not possible; then `target` is as it was.
    """
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
    defer_signals()
    move(file, target, like)
    # It has happened, so what follows is no error any more; not all file systems can do it.
    with contextlib.suppress(OSError), _opened(target.parent) as folder:
        if folder is not None:
            os.fsync(folder)


def move(source: Path, target: Path, like: Path | None = None) -> None:
    """Renames a file or folder and notices that it happened where the file system says that it could not.

    Args:
        source: in the file system of `target`.
        target: its new name; a file there is replaced.
        like: what it takes owner and permissions from, if that exists; by default the older `target`.

    Raises:
        OSError: if it is still where it was.
    """
    own = source.stat()
    _permit(source, own, target if like is None else like)
    try:
        os.replace(source, target)
    except OSError:
        # A network file system may have done it and lost the answer: it tries again, and there is no such file.
        if source.exists() or not target.exists() or not os.path.samestat(own, target.stat()):
            raise


def _permit(file: Path, own: os.stat_result, like: Path) -> None:
    """Gives a file the owner and the permissions of another, as far as the file system and our rights go."""
    with contextlib.suppress(OSError):
        wanted = like.stat()
        if (wanted.st_uid, wanted.st_gid) != (own.st_uid, own.st_gid) and os.name == "posix":
            with contextlib.suppress(OSError):
                os.chown(file, wanted.st_uid, wanted.st_gid)
        if wanted.st_mode != own.st_mode:
            file.chmod(wanted.st_mode & 0o777)


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turns an error of the file system within the block into one line that names `target`.

    Raises:
        ValueError: in place of an OSError, such as a full disk or a folder that cannot be written to.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(f"{target} cannot be written: {error.strerror or first_line(error)}") from error


def _remove_abandoned(target: Path) -> None:
    pattern = re.compile(rf"\.{re.escape(target.name)}\.\w{{8}}{re.escape(_SUFFIX)}")
    for folder in [entry for entry in target.parent.iterdir() if pattern.fullmatch(entry.name) and entry.is_dir()]:
        with contextlib.suppress(FileNotFoundError), _opened(folder) as handle:  # its process has just finished
            if _lock(handle):
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int | None]:
    """A handle to lock or sync a folder by; None where there are none."""
    handle = os.open(folder, os.O_RDONLY) if os.name == "posix" else None
    try:
        yield handle
    finally:
        if handle is not None:
            os.close(handle)


def _lock(handle: int | None) -> bool | None:
    """Whether the folder is locked now; None where there are no locks."""
    if handle is None:
        return None
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems lock no folders
        return None
    return True
