"""Files made to harm, given to the programs: one line soon, nothing is opened that waits, and no wrong file passes."""

import os
import re

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from support.function_cases import FUNCTIONS_WITHOUT_END, chain
from support.project import PROJECT

from jumpout_export.tolerances import CAP

SECONDS = 20


@pytest.fixture(params=["program", "load"])
def program(request, replay):
    return getattr(replay, request.param)


@pytest.mark.parametrize("name", ["model.onnx", "test_data_set_0/input_0.pb", "test_data_set_0/output_1.pb"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_regular_file_is_not_opened(replay, program, broken, name, kind):
    file = broken / name
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)  # nobody writes to it: whoever opens it waits for ever
    elif kind == "device":
        file.symlink_to("/dev/zero")
    else:
        file.mkdir()
    reason = rf"{re.escape(str(file))}: it is (not a file|empty or cannot be read)"
    replay.refused(2, reason, broken / "model.onnx", program=program, timeout=SECONDS)


def outside(folder, *entries):
    """Lets the model's largest tensor lie outside, as the entries say."""
    model = onnx.load(folder / "model.onnx")
    tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    (folder / "weights.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = tensor.EXTERNAL
    for key, value in entries:
        tensor.external_data.add(key=key, value=value)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return tensor


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([("location", "weights.bin"), ("location", "pipe")], "it says twice what its `location` is"),
        ([("location", "pipe"), ("location", "weights.bin")], "it says twice what its `location` is"),
        ([("location", "pipe")], "pipe is no file"),
        ([("location", "zero")], "zero is no file"),
        ([("location", "inside")], "inside is no file"),
        ([("location", "../weights.bin")], r"\.\./weights\.bin is outside of the model's folder"),
        ([("location", "/etc/hostname")], "/etc/hostname is outside of the model's folder"),
        ([("location", "weights.bin"), ("Location", "pipe")], "it says what its `Location` is, nobody knows that"),
        ([("location", "weights.bin"), ("offset", "0x4")], "its offset is no number"),
        ([], "`` is no file name"),
    ],
    ids=str,
)
def test_data_in_another_file_that_is_none_or_told_in_two_ways_is_not_opened(replay, program, broken, entries, reason):
    os.mkfifo(broken / "pipe")
    (broken / "zero").symlink_to("/dev/zero")
    (broken / "inside").mkdir()
    outside(broken, *entries)
    reason = rf"model\.onnx: it is no ONNX model that can be used: tensor `.*`: {reason}"
    replay.refused(2, reason, broken / "model.onnx", program=program, timeout=SECONDS)


def test_data_in_a_file_beside_the_model_is_fine(replay, broken):
    tensor = outside(broken, ("location", "./weights.bin"), ("offset", "0"))
    assert replay(broken / "model.onnx").returncode == 0
    array = np.frombuffer((broken / "weights.bin").read_bytes(), numpy_helper.to_array(tensor, str(broken)).dtype) * 2
    (broken / "weights.bin").write_bytes(array.tobytes())
    assert replay(broken / "model.onnx").returncode == 1, "it is really read"


@pytest.mark.parametrize(("model", "reason"), FUNCTIONS_WITHOUT_END.values(), ids=FUNCTIONS_WITHOUT_END.keys())
def test_functions_without_end_are_refused_as_in_python(replay, program, tmp_path, model, reason):
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    replay.refused(2, rf"model\.onnx: .*{reason}", tmp_path / "model.onnx", program=program, timeout=SECONDS)


def test_functions_that_end_reach_onnx_runtime(replay, tmp_path):
    (tmp_path / "model.onnx").write_bytes(chain(4, 3).SerializeToString())
    replay.refused(2, "its metadata do not say that jumpout-export has verified it", tmp_path / "model.onnx")


WIDE = [
    "cap=0.05 median=1 sizes=1e30,1e30 limits=1e4,1e4",
    "cap=0.05 median=1e30 sizes=1,1 limits=1e4,1e4",
    "cap=0.05 median=1 sizes=1e-30,1 limits=1e4,1e4",
    "cap=0.001 median=1e30 sizes=1e30,1e30 limits=1,1",
]


@pytest.mark.parametrize("tolerance", WIDE)
def test_no_size_in_the_metadata_lets_a_wrong_output_pass(replay, tmp_path, tolerance):
    golden = np.array([[1, -2], [3, 2]], "f4")
    (output,) = replay.outputs_of(
        replay.crafted(tmp_path, replay.from_array(golden * np.float32(1.2)), replay.from_array(golden), tolerance)
    )
    assert output.verdict == "fail"
    (output,) = replay.outputs_of(
        replay.crafted(tmp_path, replay.from_array(golden), replay.from_array(golden), tolerance)
    )
    assert output.verdict == "pass"


def test_a_masked_value_in_the_golden_data_widens_nothing(replay, tmp_path):
    golden = np.array([[1, -1e9], [3, -1e9]], "f4")
    got = golden + np.array([[0.3, 0], [0, 0]], "f4")
    model = replay.crafted(
        tmp_path, replay.from_array(got), replay.from_array(golden), "cap=0.05 median=1e30 sizes=1e30,1e30 limits=1,1"
    )
    (output,) = replay.outputs_of(model)
    assert (output.verdict, output.index) == ("fail", "[0,0]")


def test_the_ceiling_is_that_of_the_tolerances():
    header = (PROJECT / "cpp" / "replay" / "tolerance.h").read_text()
    (found,) = re.findall(r"kCeiling = (\S+);", header)
    # There is no golden data in bfloat16, so no tolerance of it either.
    assert float(found) == max(cap for dtype, cap in CAP.items() if dtype != torch.bfloat16)
