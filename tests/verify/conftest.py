"""A verified file, and corrupted copies of it."""

import onnx
import pytest
import torch
from support.verified import SAMPLES, Net

from jumpout_export.export.publish import export_onnx
from jumpout_export.verify.verify import verify_onnx


@pytest.fixture(scope="session")
def good(tmp_path_factory):
    """A trained network and its verified file."""
    torch.manual_seed(0)
    model = Net()
    for _ in range(5):
        model(SAMPLES * 2 + 1)
    path = tmp_path_factory.mktemp("good") / "model.onnx"
    assert export_onnx(model, path, SAMPLES[:4])
    return model, path


@pytest.fixture
def corrupt(good, tmp_path):
    """Returns a function that applies an edit to a copy of the good file and verifies it."""
    model, path = good

    def verify(edit, **arguments):
        proto = onnx.load(path)
        edit(proto)
        (tmp_path / "bad.onnx").write_bytes(proto.SerializeToString())
        return verify_onnx(tmp_path / "bad.onnx", model, SAMPLES, **arguments)

    return verify
