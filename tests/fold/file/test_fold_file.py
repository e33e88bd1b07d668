"""Folding existing files: what is not noise stays, byte for byte the same each time, in place or in another folder."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.noisy_files import (
    ADDED_NOISE,
    CONSTANTS,
    FLOAT,
    OPSET,
    dropout,
    folded,
    graph_model,
    mask,
    node,
    run,
    tensor,
    value,
)

from jumpout_export.errors import LoadError, NotVerifiableError
from jumpout_export.fold.file.fold_file import fold_onnx
from jumpout_export.verify.inspect import inspect_onnx


def test_the_rest_of_the_file_stays_as_it_was(tmp_path):
    model = graph_model(
        [*mask(by="0.5", compare=("Less", "u 0.5")), node("Identity", "r", "second")], outputs=[value("second")]
    )
    model.graph.value_info.extend([value("r"), value("m"), value("z")])
    model.metadata_props.add(key="author", value="me")
    model.metadata_props.add(key="source", value="/home/me/net.py line 3")
    model.doc_string, model.graph.doc_string, model.producer_name = "a model", "a graph", "somebody"
    model.graph.node[0].metadata_props.add(key="scope", value="features.0")
    report = folded(model, tmp_path)
    assert report
    out = onnx.load(tmp_path / "out.onnx")
    expected = onnx.ModelProto()
    expected.CopyFrom(model)
    kept = [part for part in model.graph.node if part.op_type in ("MatMul", "Relu", "Identity")]
    del expected.graph.node[:], expected.graph.value_info[1:], expected.graph.initializer[:]
    expected.graph.node.extend(kept)
    expected.graph.node[-1].input[0] = "r"
    expected.graph.initializer.extend([part for part in model.graph.initializer if part.name == "w"])
    expected.metadata_props[1].value = "net.py line 3"
    assert out == expected
    assert "texts whose absolute paths are cut to file names: 1" in report.notes


def test_an_output_keeps_its_name(tmp_path):
    model = graph_model([dropout()], outputs=[value("z")])
    assert folded(model, tmp_path)
    out = onnx.load(tmp_path / "out.onnx")
    assert [entry.name for entry in out.graph.output] == ["y", "z"]
    assert [part.op_type for part in out.graph.node] == ["MatMul", "Relu", "Identity", "MatMul"]
    assert out.graph.node[2].name == "Dropout_z"


def test_a_folded_file_has_nothing_left_to_fold(tmp_path):
    assert folded(graph_model(mask()), tmp_path)
    report = fold_onnx(tmp_path / "out.onnx", tmp_path / "again.onnx")
    assert report.folded == []
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "out.onnx").read_bytes()


def test_the_same_file_gives_the_same_bytes_in_any_folder(tmp_path):
    contents = set()
    for name in ("a", "b/c"):
        (tmp_path / name).mkdir(parents=True)
        assert folded(graph_model(mask()), tmp_path / name, seed=len(name))
        contents.add((tmp_path / name / "out.onnx").read_bytes())
    assert len(contents) == 1


def test_a_file_may_be_folded_in_place_and_stays_as_it_is_if_that_fails(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(graph_model(ADDED_NOISE).SerializeToString())
    before = path.read_bytes()
    assert not fold_onnx(path, path)
    assert path.read_bytes() == before
    path.write_bytes(graph_model([dropout()]).SerializeToString())
    assert fold_onnx(path, path)
    assert inspect_onnx(path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.manifest.json", "model.onnx"]


def test_external_data_is_taken_into_the_file(tmp_path):
    folder, path = tmp_path / "in", tmp_path / "out.onnx"
    folder.mkdir()
    model = graph_model([dropout()])
    onnx.save_model(model, folder / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    report = fold_onnx(folder / "model.onnx", path)
    assert report
    assert report.notes[0] == "external data is taken into the file"
    assert sorted(file.name for file in tmp_path.iterdir() if file.is_file()) == ["out.manifest.json", "out.onnx"]
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(run(path, x)[0], x)
    (folder / "weights").write_bytes((folder / "weights").read_bytes()[:-1])
    with pytest.raises(LoadError, match=r"model.onnx: its external data cannot be read \(.* exceeds available data"):
        fold_onnx(folder / "model.onnx", path)


def test_an_opset_whose_noise_onnxruntime_cannot_run_is_folded_without_watching_it(tmp_path):
    report = folded(graph_model(mask(), opset=22), tmp_path)
    assert report, report.checks
    (note,) = [note for note in report.notes if "was not watched" in note]
    assert "RandomUniformLike(22)" in note
    assert "proof/noise observed" not in {check.name for check in report.checks}


def test_open_axes_other_than_the_batch_are_tried_at_several_sizes(tmp_path):
    weights = tensor(np.ones((2, 3, 5, 5)), "kernel")
    nodes = [node("Conv", "x kernel", "h"), node("Relu", "h", "r"), dropout(y="y")]
    graph = helper.make_graph(nodes, "g", [value("x", ("n", 3, "height", "width"))],
                              [value("y", ("n", 2, "a", "b"))], [weights, *CONSTANTS[:3]])  # fmt: skip
    model = helper.make_model(graph, opset_imports=OPSET, ir_version=10)
    report = folded(model, tmp_path)
    assert report
    assert "batch=2, other axes 16" in {check.name: check.note for check in report.checks}["proof/repeatable"]


def test_a_file_that_runs_on_no_random_input_is_not_verifiable(tmp_path):
    graph = helper.make_graph(
        [node("StringNormalizer", "text", "s"), node("Cast", "s", "x", to=FLOAT), node("Dropout", "x 0.3 true", "y")],
        "g", [value("text", (2,), TensorProto.STRING)], [value("y", (2,))], CONSTANTS[:3],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=OPSET, ir_version=10)
    with pytest.raises(NotVerifiableError, match="input `text` holds no numbers"):
        folded(model, tmp_path)
    fixed = graph_model(
        [node("Reshape", "r size", "r2"), dropout(x="r2")], constants=[tensor([7, 4], "size", np.int64)]
    )
    with pytest.raises(NotVerifiableError, match="cannot be run on random inputs of any size that was tried"):
        folded(fixed, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["in.onnx"]


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("out.pt", "must end in .onnx"),
        ("nowhere/out.onnx", "folder of the file to write does not exist"),
        ("folder.onnx", "is a folder"),
    ],
)
def test_a_target_that_cannot_be_written_is_named(out, message, tmp_path):
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ValueError, match=message):
        fold_onnx(tmp_path / "in.onnx", tmp_path / out)
