"""The data file of an export is tied to the one file that it belongs to, and what changes meanwhile is noticed."""

import hashlib

import numpy as np
import onnx
import pytest
from support.onnx_files import parsed

from jumpout_export.onnxfile.data import (
    changed_data,
    copy_data,
    data_files,
    data_sizes,
    describe_data,
    external_files,
    sha256_of_all,
    tie_data,
    unchanged_checks,
)
from jumpout_export.onnxfile.metadata import DATA_SHA256, entries

WEIGHTS = np.arange(6, dtype=np.float32)


@pytest.fixture
def model(tmp_path):
    """A model whose weights lie in `raw.data`, in the folder of the test."""
    model = parsed("g (float[6] x) => (float[6] y) { y = Add(x, w) }", {"w": WEIGHTS})
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="raw.data", size_threshold=0)
    return onnx.load(tmp_path / "m.onnx", load_external_data=False)


def test_data_take_the_hash_of_their_content_into_their_name(model, tmp_path):
    digest = hashlib.sha256((tmp_path / "raw.data").read_bytes()).hexdigest()
    path = tie_data(model, tmp_path / "raw.data", "m.onnx")
    assert path == tmp_path / f"m.onnx.{digest[:16]}.data"
    assert external_files(model) == {path.name}
    assert entries(model) == {DATA_SHA256: digest}
    assert data_files(tmp_path, "m.onnx") == [path]
    assert data_files(tmp_path, "other.onnx") == []
    assert data_sizes(tmp_path / "m.onnx", model) == {path.name: 24}
    assert describe_data(data_sizes(tmp_path / "m.onnx", model)) == f"{path.name} (24 bytes)"


def test_data_that_no_tensor_lies_in_are_removed(tmp_path):
    (tmp_path / "raw.data").write_bytes(b"")
    small = parsed("g (float x) => (float y) { y = Neg(x) }")
    assert tie_data(small, tmp_path / "raw.data", "m.onnx") is None
    assert not (tmp_path / "raw.data").exists()
    assert entries(small) == {}


def test_other_content_under_the_same_name_is_noticed(model, tmp_path):
    path = tie_data(model, tmp_path / "raw.data", "m.onnx")
    assert changed_data(tmp_path / "m.onnx", model) == []
    path.write_bytes(bytes(24))
    (text,) = changed_data(tmp_path / "m.onnx", model)
    assert text.startswith(path.name)
    assert "its sha256 differs" in text


def test_an_entry_of_a_tensor_that_lies_in_the_file_is_no_file(model):
    model.graph.initializer[0].data_location = onnx.TensorProto.DEFAULT
    assert external_files(model) == set()


def test_data_are_copied_with_their_folders(model, tmp_path):
    (tmp_path / "to").mkdir()
    copy_data(tmp_path / "m.onnx", model, tmp_path / "to")
    assert (tmp_path / "to" / "raw.data").read_bytes() == WEIGHTS.tobytes()


def test_a_file_that_changes_while_it_is_looked_at_fails(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    before = sha256_of_all(tmp_path, ["a", "missing"])
    assert before["missing"] == ""
    assert unchanged_checks(tmp_path, before) == []
    (tmp_path / "a").write_bytes(b"2")
    (check,) = unchanged_checks(tmp_path, before)
    assert (check.name, check.verdict) == ("file/unchanged", "fail")
