"""Whatever cannot be used is one clear line that names the file, and no crash."""

import os
import re
import shutil
import subprocess

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import jumpout_export
from jumpout_export.report import VerifyReport


@pytest.mark.parametrize(
    "name", ["model.onnx", "test_data_set_0/input_0.pb", "test_data_set_0/input_2.pb", "test_data_set_0/output_5.pb"]
)
def test_a_missing_file_is_named(replay, broken, name):
    (broken / name).unlink()
    replay.refused(2, f"{re.escape(str(broken / name))}: there is no such file", broken / "model.onnx")


def test_missing_external_weights_are_named(replay, broken):
    model = onnx.load(broken / "model.onnx")
    onnx.save(model, broken / "model.onnx", save_as_external_data=True, location="weights.data", size_threshold=50)
    assert replay(broken / "model.onnx").returncode == 0
    (broken / "weights.data").unlink()
    replay.refused(
        2,
        r"model\.onnx: it is no ONNX model that can be used: tensor `.*`: weights\.data is no file",
        broken / "model.onnx",
    )


def tensor_bytes(**changes):
    tensor = numpy_helper.from_array(np.zeros((6, 3), "f4"), "image")
    for name, value in changes.items():
        getattr(tensor, name).extend(value) if isinstance(value, list) else setattr(tensor, name, value)
    return tensor.SerializeToString()


BAD_TENSORS = {
    "empty": (b"", "it is empty or cannot be read"),
    "text": (b"hello, world", "not a TensorProto: it has a field 13"),
    "noise": (b"\x03\x01\x02", "not a protobuf message"),
    "truncated": (tensor_bytes()[:-1], "the file is truncated"),
    "another message": (helper.make_opsetid("", 18).SerializeToString(), "not a TensorProto"),
    "unknown field": (b"\xf8\x07\x01", "not a TensorProto: it has a field 127"),
    "wrong wire type": (b"\x10\x01\x42\x01a\x08\x01\x4d\x00\x00\x00\x00", "not a TensorProto: field 9 is odd"),
    "endless number": (b"\x08" + b"\xff" * 12, "a number is longer than 64 bits"),
    "no data type": (b"\x08\x01", "its data type is 0"),
    "strings": (helper.make_tensor("image", TensorProto.STRING, [1], ["a"]).SerializeToString(), "has a field 6"),
    "negative shape": (tensor_bytes(dims=[-1]), "a dimension is negative"),
    "huge shape": (tensor_bytes(dims=[2**62, 2**62]), "the shape has too many elements"),
    "too few values": (tensor_bytes(dims=[2]), r"it holds 72 bytes of values, float32\[6,3,2\] has 144"),
    "values twice": (tensor_bytes(float_data=[1.0]), "it holds its values twice"),
    "external": (tensor_bytes(data_location=TensorProto.EXTERNAL), "its values lie in another file"),
    "value too large": (b"\x08\x01\x10\x02\x2a\x02\x80\x02\x42\x01x", "a value does not fit its dtype"),
    "bool of 2": (b"\x08\x01\x10\x09\x4a\x01\x02\x42\x01x", "a bool is neither 0 nor 1"),
    "another name": (
        numpy_helper.from_array(np.zeros((6, 3), "f4"), "picture").SerializeToString(),
        r"it holds `picture`, float32\[6,3\]; the model has `image`, float32\[\?,3\]",
    ),
    "another dtype": (
        numpy_helper.from_array(np.zeros((6, 3)), "image").SerializeToString(),
        r"it holds `image`, float64\[6,3\]; the model has `image`",
    ),
    "another shape": (
        numpy_helper.from_array(np.zeros((6, 4), "f4"), "image").SerializeToString(),
        r"it holds `image`, float32\[6,4\]; the model has `image`",
    ),
    "a terminal's escape": (
        numpy_helper.from_array(np.zeros((6, 3), "f4"), "\x1b[2J\n").SerializeToString(),
        r"it holds `\?\[2J`",
    ),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_golden_data_that_cannot_be_used_is_named_with_the_reason(replay, broken, name):
    content, reason = BAD_TENSORS[name]
    file = broken / "test_data_set_0" / "input_0.pb"
    file.write_bytes(content)
    replay.refused(2, f"{re.escape(str(file))}: .*{reason}", broken / "model.onnx")


def test_golden_data_for_another_model_is_named(replay, broken, digits):
    replay.refused(2, "input_0.pb: it holds `input`", broken / "model.onnx", "--data", digits)
    extra = broken / "test_data_set_0" / "output_6.pb"
    extra.write_bytes(b"")
    replay.refused(2, r"output_6\.pb: the model has only 6 outputs", broken / "model.onnx")
    extra.unlink()
    extra.with_name("output_5.pb").unlink()
    extra.with_name("output_5.pb").mkdir()
    replay.refused(2, r"output_5\.pb: it is empty or cannot be read", broken / "model.onnx")


def test_golden_data_may_lie_elsewhere(replay, broken):
    shutil.move(broken / "test_data_set_0", broken / "elsewhere" / "test_data_set_3")
    replay.refused(2, "there is no golden data, no folder test_data_set_0; export", broken / "model.onnx")
    for data in ("elsewhere", "elsewhere/test_data_set_3/"):
        assert replay("model.onnx", "--data", data, cwd=broken).returncode == 0
    replay.refused(2, "nothing: there is no such folder", "model.onnx", "--data", "nothing", cwd=broken)


def keep_only(model, key):
    kept = [entry for entry in model.metadata_props if entry.key == key]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)


def with_tolerance(line):
    def change(model):
        (entry,) = [entry for entry in model.metadata_props if entry.key == "jumpout_export.tolerance.logits"]
        entry.value = line

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda model: model.metadata_props.clear(),
            r"its metadata do not say that jumpout-export has verified it; export it anew",
        ),
        (
            lambda model: keep_only(model, "jumpout_export.version"),
            r"its metadata has no tolerance for output `logits`; export it anew with",
        ),
        (with_tolerance("cap=1"), "the tolerance of output `logits` cannot be read: `median=` is missing"),
        (with_tolerance("cap=x median=1 sizes=1 limits=1"), "not a number: x"),
        (with_tolerance("cap=inf median=1 sizes=1 limits=1"), "not a number: inf"),
        (with_tolerance("cap=1 median=1 sizes=1,2 limits=1"), "`sizes` and `limits` differ in length"),
        (with_tolerance("cap=1 median=1 sizes=1 limits=1 x"), "there is more than expected"),
        (with_tolerance("cap=1e30 median=1 sizes=1 limits=1"), "`cap` is 1e\\+30, above 0.05 no file is told from a"),
        (with_tolerance("cap=0.051 median=1 sizes=1 limits=1"), "`cap` is 0.051, above 0.05 no file is told from"),
        (with_tolerance("cap=0.001 median=1 sizes=1,1 limits=1,1e30"), "`limits` is 1e\\+30, above 10000 no file"),
    ],
    ids=[
        "none",
        "no golden data",
        "truncated",
        "text",
        "infinite",
        "lengths",
        "more",
        "cap",
        "cap, a little",
        "limits",
    ],
)
def test_a_model_without_a_usable_tolerance_is_refused(replay, broken, change, reason):
    model = onnx.load(broken / "model.onnx")
    change(model)
    (broken / "model.onnx").write_bytes(model.SerializeToString())
    replay.refused(2, rf"model\.onnx: .*{reason}", broken / "model.onnx")


@pytest.mark.parametrize("program", ["program", "load"])
def test_a_model_that_is_random_on_purpose_has_nothing_to_replay(replay, broken, program):
    model = onnx.load(broken / "model.onnx")
    model.metadata_props.add(key="jumpout_export.random", value="random on purpose: 1 node (\x1b[2J)\nallowed in `2`")
    (broken / "model.onnx").write_bytes(model.SerializeToString())
    reason = (
        r"there is nothing to replay: its metadata says that it is random on purpose: 1 node \(\?\[2J\) allowed in `2`$"
    )
    replay.refused(2, rf"model\.onnx: {reason}", broken / "model.onnx", program=getattr(replay, program))


def test_a_tolerance_for_another_output_is_refused(replay, broken):
    model = onnx.load(broken / "model.onnx")
    with_tolerance("cap=0.05 median=1 sizes=1,1 limits=1,1")(model)
    (broken / "model.onnx").write_bytes(model.SerializeToString())
    reason = r"output_0\.pb: the tolerance in the model is for 2 channels, the golden output has 5"
    replay.refused(2, reason, broken / "model.onnx")


def test_a_file_that_is_no_model_of_tensors_is_refused(replay, broken):
    model = broken / "model.onnx"
    content = model.read_bytes()
    for wrong in (content[: len(content) // 2], b"hello", b""):
        model.write_bytes(wrong)
        replay.refused(2, r"model\.onnx: ", model)
    replay.refused(2, "copy: it is not a file", broken)
    text = helper.make_tensor_value_info("x", TensorProto.STRING, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [text], [text])
    graph.output[0].name = "y"
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    model.write_bytes(proto.SerializeToString())
    replay.refused(2, r"model\.onnx: `x` does not hold numbers", model)
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [1]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    node = helper.make_node("SequenceConstruct", ["x"], ["y"])
    graph = helper.make_graph([node], "g", [x], [helper.make_value_info("y", kind)])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    model.write_bytes(proto.SerializeToString())
    replay.refused(2, r"model\.onnx: `y` is not a tensor", model)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "a model is missing; --help shows the usage"),
        (["a", "b"], "one model is allowed, got a and b"),
        (["a", "--gpu"], "there is no option --gpu; --help lists them"),
        (["a", "--data"], "--data needs a value"),
        (["a", "--provider", "tpu"], "--provider must be cpu or cuda, got tpu"),
        (["a", "--threads", "0"], r"--threads must be a number in \[1, 1024\], got 0"),
        (["a", "--json=yes"], "--json takes no value, got --json=yes"),
        (["a", "--threads=0"], r"--threads must be a number in \[1, 1024\], got 0"),
        (["a", "--gpu=1"], "there is no option --gpu; --help lists them"),
        (["a", "--repeat", "3x"], r"--repeat must be a number in \[1, 1000000\], got 3x"),
    ],
)
def test_wrong_usage_is_explained(replay, arguments, reason):
    replay.refused(2, reason, *arguments)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--batches", "1,x"], r"--batches must be numbers in \[1, 65536\] such as 1,2,7, got 1,x"),
        (["--batches=1,2,"], "--batches must be numbers in .* got 1,2,"),
        (["--batches", ""], "--batches must be .* got none"),
        (["--duration=0"], r"--duration must be seconds in \(0, 604800\], got 0"),
        (["--duration", "1s"], r"--duration must be seconds in \(0, 604800\], got 1s"),
        (["--duration", "1", "--requests", "2"], "--requests and --duration: only one can say when to end"),
        (["--clients", "-1"], r"--clients must be a number in \[1, 1024\], got -1"),
        ([], "jumpout-load: no.onnx: there is no such file"),
    ],
)
def test_wrong_usage_of_the_load_is_explained(replay, arguments, reason):
    replay.refused(2, reason, "no.onnx", *arguments, program=replay.load)


def test_a_dump_that_cannot_be_written_is_refused(replay, mixed, tmp_path):
    (tmp_path / "test_data_set_0" / "output_0.raw").mkdir(parents=True)
    replay.refused(2, r"output_0\.raw: cannot be written", mixed / "model.onnx", "--dump", tmp_path)


@pytest.mark.parametrize("folder", ["/nothing", "/proc"])
def test_without_a_place_for_a_profile_the_verdict_is_the_same(replay, mixed, folder):
    done = replay(mixed / "model.onnx", "--json", env={**os.environ, "TMPDIR": folder})
    assert done.returncode == 0
    check = VerifyReport.model_validate_json(done.stdout).checks[1]
    assert (check.name, check.note) == ("cpu/all/nodes", "a session on the CPU alone runs every node there")
    assert ", all nodes there\n" in replay(mixed / "model.onnx", env={**os.environ, "TMPDIR": folder}).stdout


def test_reasons_are_whole(replay, broken):
    name = "x" * 3000
    tensor = numpy_helper.from_array(np.zeros((6, 3), "f4"), name)
    replay.write_tensor(broken / "test_data_set_0" / "input_0.pb", tensor)
    replay.refused(2, f"it holds `{name}`, ", broken / "model.onnx")
    replay.write_tensor(
        broken / "test_data_set_0" / "input_0.pb", numpy_helper.from_array(np.zeros((6, 3), "f4"), "x" * 20000)
    )
    replay.refused(2, r"x\.\.\. and 10000 more characters`, ", broken / "model.onnx")


@pytest.mark.parametrize("program", ["program", "load"])
def test_help_and_version(replay, program):
    path = getattr(replay, program)
    long, short = replay.run(path, "--help"), replay.run(path, "no.onnx", "-h")
    assert (long.returncode, long.stderr, long.stdout) == (0, "", short.stdout)
    assert long.stdout.startswith(f"usage: {path.name} MODEL.onnx ")
    done = replay.run(path, "--version")
    version = jumpout_export.__version__
    assert (done.returncode, done.stdout) == (0, f"{path.name} {version}, ONNX Runtime {onnxruntime.__version__}\n")


@pytest.mark.parametrize("program", ["program", "load"])
def test_a_full_disk_is_no_pass(replay, mixed, program):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [getattr(replay, program), mixed / "model.onnx"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (2, f"{getattr(replay, program).name}: the result cannot be written\n")
