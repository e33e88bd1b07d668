"""Private folders and locks: those of a dead process go, those that are not ours stay."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from support.publish_worker import NAME, in_fork, listed

from jumpout_export.disk import locked, open_plain, private_folder, writing


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
