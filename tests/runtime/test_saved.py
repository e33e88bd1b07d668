"""A saved file is read once, and each of its sessions is opened once."""

import pytest
from support.onnx_files import saved

from jumpout_export.errors import LoadError
from jumpout_export.runtime import saved as room
from jumpout_export.runtime.saved import SavedFile


def test_it_is_read_once_and_each_session_is_opened_once(tmp_path, monkeypatch):
    read, opened = [], []
    monkeypatch.setattr(room, "load_onnx", lambda path, load=room.load_onnx: read.append(path) or load(path))
    monkeypatch.setattr(
        room, "open_session", lambda *key, start=room.open_session: opened.append(key[1:]) or start(*key)
    )
    file = SavedFile(saved("g (float[n] x) => (float[n] y) { y = Neg (x) }", tmp_path / "m.onnx"))
    assert (read, opened) == ([], [])
    assert file.proto is file.proto
    assert file.session("cpu", "off") is file.session("cpu", "off")
    assert file.session("cpu", "all") is not file.session("cpu", "off")
    assert len(read) == 1
    assert opened == [("cpu", "off"), ("cpu", "all")]


def test_what_cannot_be_read_says_so_each_time(tmp_path):
    file = SavedFile(tmp_path / "none.onnx")
    for _ in range(2):
        with pytest.raises(LoadError, match="no such file"):
            file.proto  # noqa: B018
        with pytest.raises(Exception, match=r"none\.onnx"):
            file.session("cpu", "off")
