"""Data beside the file, tensors without data, impossible sizes, unreadable files: found, nothing is opened or run."""

import os
import re

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from support.onnx_files import saved
from support.static_files import external, found, inspected, model_of

from jumpout_export import verify_onnx
from jumpout_export.errors import LoadError
from jumpout_export.fold.file.fold_file import fold_onnx
from jumpout_export.onnxfile.metadata import DATA_SHA256
from jumpout_export.verify.inspect import inspect_onnx

OUTSIDE = "is outside of the model's folder"


@pytest.mark.parametrize(
    ("location", "problem"),
    [
        ("../weights.bin", OUTSIDE),
        ("/etc/hostname", OUTSIDE),
        ("sub/../../weights.bin", OUTSIDE),
        ("sub/../own.bin", OUTSIDE),
        ("link.bin", OUTSIDE),
        ("inner.bin", "is reached through a symbolic link"),
        ("hard.bin", "has several hard links"),
        ("sub", "is no file"),
        ("pipe", "is no file"),
        ("missing.bin", "is no file"),
        ("", "is no file name"),
        ("a\0b", "is no file name"),
    ],
)
def test_external_data_that_is_no_plain_file_of_the_folder_is_found_and_not_opened(location, problem, tmp_path):
    (tmp_path / "weights.bin").write_bytes(bytes(12))
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "own.bin").write_bytes(bytes(12))
    (folder / "link.bin").symlink_to(tmp_path / "weights.bin")
    (folder / "inner.bin").symlink_to(folder / "own.bin")
    (folder / "hard.bin").hardlink_to(tmp_path / "weights.bin")
    os.mkfifo(folder / "pipe")
    model = model_of("y = Add(x, w)", weights={"w": np.ones(3, "f4")})
    external(model.graph.initializer[0], location)
    report = inspected(model, folder)
    shown = location if location.isprintable() and location else repr(location)
    assert found(report)["external data"].note == f"w: {shown} {problem}"
    assert found(report)["onnxruntime"].verdict == "not_run"
    assert found(report)["onnx checker"].verdict == "not_run"
    assert not report
    with pytest.raises(LoadError, match="no such file"):
        inspect_onnx(folder / "out.onnx")
    assert not fold_onnx(folder / "model.onnx", folder / "out.onnx")
    verified = verify_onnx(folder / "model.onnx", torch.nn.ReLU(), torch.ones(2, 3))
    assert verified.providers["cpu"].reason == "the file is not run"


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([("location", "weights.bin"), ("location", "pipe")], "it says 2 times what its 'location' is"),
        ([("location", "pipe"), ("location", "weights.bin")], "it says 2 times what its 'location' is"),
        ([("location", "weights.bin")] * 3, "it says 3 times what its 'location' is"),
        ([("location", "weights.bin"), ("location", "missing.bin")], "it says 2 times"),
        ([("location", "weights.bin"), ("offset", "0"), ("offset", "4")], "it says 2 times what its 'offset' is"),
        ([("location", "weights.bin"), ("length", "twelve")], "its offset or length is no number"),
        ([("location", "weights.bin"), ("Location", "pipe")], "it says what its 'Location' is, known are"),
        ([("location", "weights.bin"), ("", "pipe")], "it says what its '' is, known are"),
        ([("offset", "0")], "'' is no file name"),
        ("holds values too", "it holds values, and says that they lie elsewhere"),
    ],
    ids=str,
)
@pytest.mark.parametrize("tied", [False, True], ids=["", "with a hash"])
def test_external_data_that_is_told_in_two_ways_is_found_and_not_opened(entries, problem, tied, tmp_path):
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    os.mkfifo(tmp_path / "pipe")  # nobody writes to it: whoever opens it waits for ever
    model = model_of("y = Add(x, w)", weights={"w": np.ones(3, "f4")})
    tensor = model.graph.initializer[0]
    external(tensor, "weights.bin")
    if isinstance(entries, str):
        tensor.float_data.extend([1, 1, 1])
    else:
        del tensor.external_data[:]
        for key, value in entries:
            tensor.external_data.add(key=key, value=value)
    if tied:
        model.metadata_props.add(key=DATA_SHA256, value="0" * 64)
    report = inspected(model, tmp_path)
    assert found(report)["external data"].note.startswith(f"w: {problem}")
    assert found(report)["onnxruntime"].verdict == "not_run"
    assert not fold_onnx(tmp_path / "model.onnx", tmp_path / "out.onnx")
    verified = verify_onnx(tmp_path / "model.onnx", torch.nn.ReLU(), torch.ones(2, 3))
    assert verified.providers["cpu"].reason == "the file is not run"
    assert sorted(os.listdir(tmp_path)) == ["model.onnx", "pipe", "weights.bin"]


@pytest.mark.parametrize("more", [(), (("offset", "4"), ("length", "12"), ("checksum", "0" * 40))])
def test_external_data_beside_the_file_is_fine(more, tmp_path):
    (tmp_path / "weights.bin").write_bytes(bytes(12 + 4 * bool(more)))
    model = model_of("y = Add(x, w)", weights={"w": np.ones(3, "f4")})
    external(model.graph.initializer[0], "weights.bin")
    for key, value in more:
        model.graph.initializer[0].external_data.add(key=key, value=value)
    assert inspected(model, tmp_path)


def test_a_missing_file_a_folder_and_something_else_are_named(tmp_path):
    with pytest.raises(LoadError, match=r"missing.onnx: no such file"):
        inspect_onnx(tmp_path / "missing.onnx")
    with pytest.raises(LoadError, match="is not a file"):
        inspect_onnx(tmp_path)
    for name, content in (("empty", b""), ("text", b"this is no model"), ("zeros", bytes(64))):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        with pytest.raises(LoadError, match=f"{name}.onnx: not a readable ONNX model"):
            inspect_onnx(path)


def test_a_file_cut_off_anywhere_never_passes(tmp_path):
    whole = model_of("y = MatMul(x, w)", weights={"w": np.ones((3, 3), dtype=np.float32)}).SerializeToString()
    path = tmp_path / "cut.onnx"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(LoadError, match=r"cut.onnx: not a readable ONNX model \(.+\)$"):
            inspect_onnx(path)
    path.write_bytes(whole)
    assert inspect_onnx(path)


def test_weights_that_are_nan_are_noted(tmp_path):
    weights = np.ones((3, 3), dtype=np.float16)
    weights[1, 1:] = np.nan
    weights[0, 0] = -np.inf
    report = inspected(model_of("f = Cast<to = 1>(w) y = MatMul(x, f)", weights={"w": weights}), tmp_path)
    assert report
    assert report.notes[1:-1] == ["`w` holds 2 NaN"]


@pytest.mark.parametrize(
    ("shape", "shown"),
    [((1 << 40, 3), "1099511627776, 3"), ((0, 3), "0, 3"), ((-2, 3), "-2, 3"), (("n", 1 << 40), "n, 1099511627776")],
)
def test_an_input_of_an_impossible_size_is_found_and_the_file_not_run(shape, shown, tmp_path):
    model = model_of("y = Relu(x)", shape=shape)
    report = inspected(model, tmp_path)
    assert found(report)["input sizes"].note == f"x: [{shown}], allowed are axes from 1 and 268435456 elements"
    assert not fold_onnx(tmp_path / "model.onnx", tmp_path / "out.onnx")
    verified = verify_onnx(tmp_path / "model.onnx", torch.nn.ReLU(), torch.ones(2, 3))
    assert not verified
    assert verified.providers["cpu"].reason == "the file is not run"


def test_a_value_of_an_impossible_size_is_not_computed(tmp_path):
    nodes = "[huge] ones = ConstantOfShape(size) sum = ReduceSum<keepdims = 0>(ones) y = Add(x, sum)"
    path = saved(model_of(nodes, [f"int64[1] size = {{{1 << 40}}}"]), tmp_path / "model.onnx")
    report = fold_onnx(path, tmp_path / "out.onnx")
    assert report.checks[0].note.startswith("ones: [1099511627776], allowed are")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda tensor: tensor.dims.append(2), "w has 12 bytes, its shape needs 24"),
        (lambda tensor: tensor.dims.append(-1), "w has a negative size"),
        (lambda tensor: tensor.dims.append(1 << 60), "w has 12 bytes, its shape needs 13835058055282163712"),
        (lambda tensor: tensor.ClearField("raw_data"), r"w cannot be read \("),
        (lambda tensor: setattr(tensor, "data_type", 99), r"w cannot be read \("),
    ],
    ids=["too short", "negative", "huge", "no data", "unknown type"],
)
def test_a_tensor_without_its_data_is_found(change, problem, tmp_path):
    tensor = numpy_helper.from_array(np.ones(3, dtype=np.float32), "w")
    change(tensor)
    model = model_of("y = Add(x, w)")
    model.graph.initializer.append(tensor)
    report = inspected(model, tmp_path)
    assert re.match(problem, found(report)["tensors"].note)
    assert not fold_onnx(tmp_path / "model.onnx", tmp_path / "out.onnx")


@pytest.mark.integration
def test_text_that_is_not_utf8_and_a_file_too_large_are_not_readable(tmp_path):
    path = saved(model_of("[node] y = Relu(x)"), tmp_path / "model.onnx")
    path.write_bytes(path.read_bytes().replace(b"node", b"\xff\xff\xff\xff"))
    with pytest.raises(LoadError, match="holds names or texts that are not UTF-8"):
        inspect_onnx(path)
    with path.open("wb") as file:
        file.truncate(1 << 31)
    with pytest.raises(LoadError, match="larger than 2 GiB"):
        inspect_onnx(path)


def test_nothing_is_printed_about_a_broken_file(tmp_path, capfd):
    tensor = numpy_helper.from_array(np.ones(3, dtype=np.float32), "w")
    tensor.dims.append(2)
    model = model_of("y = Add(x, w)")
    model.graph.initializer.append(tensor)
    inspected(model, tmp_path)
    inspected(model_of("y = Relu(x)", opset=28), tmp_path)
    assert capfd.readouterr() == ("", "")
