"""Private folders and locks: those of a dead process go, those that are not ours stay."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import pytest
from support.publish_worker import NAME, in_fork, listed

from jumpout_export.disk import check_target, locked, move, open_plain, private_folder, replace_file, writing


def test_an_error_of_the_file_system_is_one_line_with_the_file():
    with (
        pytest.raises(ValueError, match=r"^m\.onnx cannot be written: No space left on device$"),
        writing(Path("m.onnx")),
    ):
        raise OSError(28, "No space left on device", "/somewhere/else")
    with pytest.raises(ValueError, match=r"^m\.onnx cannot be written: a reason$"), writing(Path("m.onnx")):
        raise TimeoutError("a reason")


def test_the_folder_of_a_living_export_stays_and_that_of_a_dead_one_goes(tmp_path):
    target = tmp_path / NAME

    def dies():
        with private_folder(target) as folder:
            (folder / "part").write_text("half a file")
            os.kill(os.getpid(), signal.SIGKILL)

    with private_folder(target) as alive:
        assert in_fork(dies) == -signal.SIGKILL
        assert len(listed(tmp_path)) == 2
        with private_folder(target) as other:
            assert listed(tmp_path) == sorted([alive.name, other.name])
        with private_folder(tmp_path / "other.onnx"):
            assert alive.exists()
    assert listed(tmp_path) == []


def test_folders_that_are_not_ours_stay(tmp_path):
    for name in (".model.onnx.backup", ".model.onnx.12345678", "model.onnx.12345678.unfinished"):
        (tmp_path / name).mkdir()
    (tmp_path / ".model.onnx.1234abcd.unfinished").write_text("a file")
    before = listed(tmp_path)
    with private_folder(tmp_path / NAME):
        pass
    assert listed(tmp_path) == before


def test_a_lock_that_is_not_let_go_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("jumpout_export.disk._PATIENCE", 0.05)
    with locked(tmp_path), pytest.raises(TimeoutError, match="another process has locked the folder"), locked(tmp_path):
        pass


def test_only_regular_files_are_opened_and_nobody_waits(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with open_plain(tmp_path / name) as file:
            assert file.read() == b"content"
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="is no regular file"):
            open_plain(path)
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(OSError):
            open_plain(path)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o666])
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path, mode):
    new, target, beside = tmp_path / "new", tmp_path / NAME, tmp_path / "weights.data"
    target.write_text("old")
    target.chmod(mode)
    beside.write_text("weights")
    replace_file(beside, tmp_path / "moved.data", like=target)
    new.write_text("new")
    replace_file(new, target)
    assert target.read_text() == "new"
    assert {path.stat().st_mode & 0o777 for path in (target, tmp_path / "moved.data")} == {mode}


def test_a_new_file_has_the_usual_permissions(tmp_path):
    new = tmp_path / "new"
    new.write_text("new")
    usual = new.stat().st_mode
    replace_file(new, tmp_path / NAME)
    assert (tmp_path / NAME).stat().st_mode == usual


def after(action):
    """Does what it is asked and then says that it could not, as a network file system may."""

    def lying(*arguments):
        action(*arguments)
        raise FileNotFoundError(2, "No such file or directory")

    return lying


def test_a_rename_that_happened_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "new").write_text("new")
    (tmp_path / NAME).write_text("old")
    (tmp_path / "folder").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", after(os.replace))
        replace_file(tmp_path / "new", tmp_path / NAME)
        move(tmp_path / "folder", tmp_path / "moved")
    assert (tmp_path / NAME).read_text() == "new"
    assert (tmp_path / "moved").is_dir()


def test_a_rename_that_did_not_happen_is_one(tmp_path, monkeypatch):
    (tmp_path / "new").write_text("new")
    (tmp_path / NAME).write_text("old")

    def fails(*_):
        raise OSError(5, "Input/output error")

    def loses(source, _):
        os.unlink(source)
        raise OSError(5, "Input/output error")

    for action in (fails, loses):
        monkeypatch.setattr(os, "replace", action)
        with pytest.raises(OSError, match="Input/output error"):
            replace_file(tmp_path / "new", tmp_path / NAME)
        assert (tmp_path / NAME).read_text() == "old"


def test_a_folder_that_cannot_be_synced_is_no_error_once_the_file_is_there(tmp_path, monkeypatch):
    (tmp_path / "new").write_text("new")
    real = os.fsync
    monkeypatch.setattr(os, "fsync", failing_for_folders(real))
    replace_file(tmp_path / "new", tmp_path / NAME)
    assert (tmp_path / NAME).read_text() == "new"


def failing_for_folders(real):
    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(22, "Invalid argument")
        return real(handle)

    return fsync


@pytest.mark.parametrize("to", ["real.onnx", "missing.onnx", "link.onnx"])
def test_a_symbolic_link_is_no_target(tmp_path, to):
    (tmp_path / "real.onnx").write_text("old")
    (tmp_path / "link.onnx").symlink_to(to)
    with pytest.raises(ValueError, match=rf"path is a symbolic link to '{to}': name that file, or remove the link"):
        check_target(tmp_path / "link.onnx", "path")
    assert listed(tmp_path) == ["link.onnx", "real.onnx"]
    assert (tmp_path / "real.onnx").read_text() == "old"


def test_a_folder_may_be_reached_through_a_link(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "way").symlink_to("folder")
    assert check_target(tmp_path / "way" / NAME, "path") == tmp_path / "way" / NAME


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file_is_not_replaced(tmp_path, kind):
    target = tmp_path / NAME
    os.mkfifo(target) if kind == "pipe" else target.symlink_to("/dev/null")
    with pytest.raises(ValueError, match="pipe or a folder, which is not replaced" if kind == "pipe" else "/dev/null"):
        check_target(target, "path")
    assert not target.is_file()
