"""What a file says about itself is read back as it was written, and what others wrote is left out."""

from support.onnx_files import parsed, saved

from jumpout_export.onnxfile.load import load_onnx
from jumpout_export.onnxfile.metadata import add_entries, describe_layers, entries
from jumpout_export.report import FoldedLayer


def with_entries(**values):
    model = parsed("g (float x) => (float y) { y = Neg(x) }")
    for key, value in values.items():
        model.metadata_props.add(key=key.replace("__", "."), value=value)
    return model


def test_only_our_own_entries_are_read():
    model = with_entries(jumpout_export__torch="2.13", author="me")
    assert entries(model) == {"jumpout_export.torch": "2.13"}


def test_layers_are_one_line():
    layers = [
        FoldedLayer(path="", kind="Dropout", action="identity", settings="p=0.5"),
        FoldedLayer(path="a.b", kind="mask", action="identity", settings=""),
    ]
    assert describe_layers(layers) == ".: Dropout(p=0.5) -> identity; a.b: mask() -> identity"
    assert describe_layers([]) == "none"


def test_further_entries_change_nothing_else(tmp_path):
    model = with_entries(jumpout_export__torch="2.13")
    path = saved(model, tmp_path / "model.onnx")
    before = path.read_bytes()
    add_entries(path, load_onnx(path), {})
    assert path.read_bytes() == before
    add_entries(path, load_onnx(path), {"jumpout_export.magnitudes": "at 100 times"})
    after = load_onnx(path)
    assert entries(after) == {"jumpout_export.torch": "2.13", "jumpout_export.magnitudes": "at 100 times"}
    assert after.graph == model.graph
