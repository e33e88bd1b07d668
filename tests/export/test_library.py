"""The converter's library is read once per process, and is the same as if it were read at every export."""

import pytest
from torch.onnx._internal.exporter import _registration
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
    monkeypatch.setattr(library, "_read", {})
    return count


def described(registry):
    functions = registry.functions.items()
    return {
        name: [(meta.onnx_function, meta.signature, meta.is_complex) for meta in metas] for name, metas in functions
    }


def test_it_is_read_once_and_put_back(reads):
    before = vars(ONNXRegistry)["from_torchlib"]
    with library_read_once():
        first = ONNXRegistry.from_torchlib()
    with library_read_once(), library_read_once():
        second = ONNXRegistry.from_torchlib()
    assert len(reads) == 1
    assert vars(ONNXRegistry)["from_torchlib"] is before
    own = ONNXRegistry.from_torchlib()
    assert len(reads) == 2, "torch reads it again, or nothing is tested"
    assert repr(described(first)) == repr(described(second)) == repr(described(own))
    assert len(own.functions) > 100


def test_another_opset_is_another_library(reads):
    with library_read_once():
        old, new = ONNXRegistry.from_torchlib(opset_version=18), ONNXRegistry.from_torchlib(opset_version=23)
    assert (old.opset_version, new.opset_version, len(reads)) == (18, 23, 2)


def test_what_one_export_registers_no_other_sees(reads):
    with library_read_once():
        first = ONNXRegistry.from_torchlib()
        name = next(iter(first.functions))
        first.functions[name].clear()
        first.functions["mine"] = []
        second = ONNXRegistry.from_torchlib()
    assert second.functions[name]
    assert "mine" not in second.functions


def test_another_torch_reads_it_in_its_own_way(monkeypatch):
    monkeypatch.delattr(_registration, "ONNXRegistry")
    with library_read_once():
        pass
