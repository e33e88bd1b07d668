"""The converter's library is read once per process, and is the same as if it were read at every export."""

import pytest
from torch.onnx._internal.exporter._registration import ONNXRegistry, onnxscript_apis

from jumpout_export.export import library
from jumpout_export.export.library import library_read_once

pytestmark = pytest.mark.integration


@pytest.fixture
def reads(monkeypatch):
    """A list that is longer by one whenever the library is read."""
    count = []
    original = onnxscript_apis.get_torchlib_ops

    def read():
        count.append(1)
        return original()

    monkeypatch.setattr(onnxscript_apis._module, "get_torchlib_ops", read)
    yield count
    library._read.cache_clear()


def described(registry):
    return {
        name: [(meta.onnx_function, meta.is_complex) for meta in metas] for name, metas in registry.functions.items()
    }


def test_it_is_read_once_and_put_back(reads):
    with library_read_once():
        first = ONNXRegistry.from_torchlib()
    with library_read_once():
        second = ONNXRegistry.from_torchlib()
    assert len(reads) == 1
    own = ONNXRegistry.from_torchlib()
    assert len(reads) == 2, "torch reads it again, or nothing is tested"
    assert described(first) == described(second) == described(own)
    assert len(own.functions) > 100
    assert "get_torchlib_ops" not in vars(onnxscript_apis)


def test_another_torch_reads_it_in_its_own_way(monkeypatch):
    from torch.onnx._internal.exporter import _registration

    monkeypatch.delattr(_registration, "onnxscript_apis")
    with library_read_once():
        pass
