"""The verdict from C++: the same bits as Python, the same limits, and whatever is wrong is found with its name."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from jumpout_export.export.golden import tolerance_line
from jumpout_export.verify.values.reference import Expected
from jumpout_export.verify.values.scale import Scale, relative


def test_a_right_model_passes_and_says_how_well(replay, digits):
    done = replay(digits / "model.onnx", "--threads", "2", "--repeat", "3")
    assert (done.returncode, done.stderr) == (0, "")
    first, output, latency, verdict = done.stdout.splitlines()
    assert re.search(r"model\.onnx: ONNX Runtime \S+ on cpu, 2 threads, \d+ nodes on CPUExecutionProvider$", first)
    assert output.startswith(f"{digits}/test_data_set_0/output_0.pb: output `output` float32[8,10], max abs ")
    assert re.search(r"max rel \S+, limit \S+ at \[\d,\d\], pass, 0\.\d+ of it$", output)
    assert re.fullmatch(r"latency: \S+ ms, median of 3 runs", latency)
    assert verdict == "PASS: 1 output within tolerance of the golden data"


def test_every_node_is_counted_where_it_ran(replay, digits, tmp_path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    session = onnxruntime.InferenceSession(str(digits / "model.onnx"), options)
    session.run(None, {"input": np.zeros((8, 1, 8, 8), np.float32)})
    events = json.loads(Path(session.end_profiling()).read_text())
    nodes = sum(event["cat"] == "Node" for event in events)
    (check,) = [check for check in replay.report_of(digits / "model.onnx").checks if check.name == "cpu/all/nodes"]
    assert (check.verdict, check.note) == ("pass", f"nodes that ran: {nodes} on CPUExecutionProvider")
    own = tmp_path / "temporary"
    own.mkdir()
    assert replay(digits / "model.onnx", env={**os.environ, "TMPDIR": str(own)}).returncode == 0
    assert not list(own.glob("jumpout-replay-*"))  # ONNX Runtime leaves a file of its own


def test_outputs_of_every_dtype_pass(replay, mixed):
    outputs = replay.outputs_of(mixed / "model.onnx")
    kinds = ["float32[6,5]", "int64[6]", "bool[6]", "float16[6,3]", "int32[6]", "uint8[6]"]
    assert [output.kind for output in outputs] == kinds
    assert [output.verdict for output in outputs] == ["pass"] * 6


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["digits", "mixed"])
def test_outputs_have_the_bits_that_python_gets(replay, request, tmp_path, name, threads):
    import onnxruntime

    folder = request.getfixturevalue(name)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
    data = folder / "test_data_set_0"
    inputs = [numpy_helper.to_array(onnx.load_tensor(data / f"input_{i}.pb")) for i in range(len(session.get_inputs()))]
    expected = session.run(None, {node.name: value for node, value in zip(session.get_inputs(), inputs, strict=True)})
    assert replay.report_of(folder / "model.onnx", "--threads", threads, "--dump", tmp_path).passed
    for index, value in enumerate(expected):
        assert (tmp_path / "test_data_set_0" / f"output_{index}.raw").read_bytes() == value.tobytes()


def masked(values):
    values[values > 1] = -1e9
    return values


def scaled(values):
    values[1] *= 1e6
    values[:, 0] = 0
    return values


def boxes_and_scores(seed):
    values = torch.randn(8, 1, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values[..., :6] *= 1e6
    return values


def allowed(line, golden):
    """What `cpp/replay/tolerance.h` says: sizes, and the largest errors of a golden output, by numpy alone."""
    fields = dict(part.split("=") for part in line.split())
    sizes, limits = (np.array(fields[name].split(","), float) for name in ("sizes", "limits"))
    cap, median, axis = (float(fields.get(name, 1)) for name in ("cap", "median", "axis"))
    magnitude = np.abs(np.asarray(golden, float))
    magnitude = magnitude.reshape(-1, 1) if magnitude.ndim < 2 else np.moveaxis(magnitude, int(axis), 1)
    flat = magnitude.reshape(*magnitude.shape[:2], -1)
    masked = flat.max() if (flat == flat.max()).sum() > 1 else np.nan
    factors = []
    for sample in flat:
        kept = [np.sort(channel[(channel > 0) & (channel != masked)]) for channel in sample]
        ratios = [one[(len(one) - 1) // 2] / size for one, size in zip(kept, sizes, strict=True) if len(one) and size]
        factors.append(max(1.0, sorted(ratios)[len(ratios) // 2]))
    factor = np.array(factors)[:, None, None]
    size = np.maximum(sizes[None, :, None] * factor, flat)
    limit = np.minimum(limits[None, :, None] * size, cap * np.maximum(size, median * factor))
    shape = magnitude.shape
    if golden.ndim < 2:
        return size.reshape(golden.shape), limit.reshape(golden.shape)
    return np.moveaxis(size.reshape(shape), 1, int(axis)), np.moveaxis(limit.reshape(shape), 1, int(axis))


@pytest.mark.parametrize(
    "exact",
    [
        torch.randn(6, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
        torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
        torch.randn(9, generator=torch.Generator().manual_seed(2), dtype=torch.float64),
        torch.tensor(2.5, dtype=torch.float64),
        masked(torch.randn(6, 10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)),
        scaled(torch.randn(5, 6, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)),
        boxes_and_scores(6),
    ],
    ids=["logits", "images", "one dimension", "scalar", "masked", "one large sample and a dead channel", "boxes"],
)
def test_limits_are_those_of_the_python_side(replay, tmp_path, exact):
    torch.manual_seed(5)
    golden = exact.float()
    own = torch.where(golden == -1e9, golden, golden * (1 + 1e-6 * torch.randn(golden.shape)))
    got = golden * (1 + 2e-6 * torch.randn(golden.shape))
    line = tolerance_line([Expected("y", own, exact)], has_reference=True)
    model = replay.crafted(tmp_path, replay.from_array(got.numpy()), replay.from_array(golden.numpy()), line)
    (output,) = replay.outputs_of(model)
    size, limit = (torch.from_numpy(values) for values in allowed(line, golden))
    errors = (got.double() - golden.double()).abs()
    share = output.measured / output.limit
    assert share == pytest.approx(relative(errors, limit).max().item(), rel=1e-5)
    assert output.max_rel == pytest.approx(relative(errors, size).max().item(), rel=1e-5)
    assert output.max_abs == pytest.approx(errors.max().item())
    assert output.verdict == ("pass" if share <= 1 else "fail")
    # The metadata holds four digits; along one axis alone no limit is smaller than along all of them.
    scale = Scale()
    scale.add(Expected("y", own, exact))
    whole = scale.budget(has_reference=True).allowed(scale.units).reshape(exact.shape)
    assert (whole <= limit * (2 if exact.ndim > 2 else 1.002)).all()
    if exact.ndim < 3:
        torch.testing.assert_close(whole, limit, rtol=2e-3, atol=0)


@pytest.mark.parametrize(("factor", "verdict"), [(1 + 1e-6, "pass"), (1.01, "fail")])
def test_a_score_beside_boxes_is_judged_as_a_score(replay, tmp_path, factor, verdict):
    exact = boxes_and_scores(7)
    golden, got = exact.float(), exact.float()
    got[:, 0, 6] *= factor
    line = tolerance_line([Expected("y", golden * (1 + 1e-7), exact)], has_reference=True)
    assert " axis=2 " in line
    model = replay.crafted(tmp_path, replay.from_array(got.numpy()), replay.from_array(golden.numpy()), line)
    (output,) = replay.outputs_of(model)
    assert output.verdict == verdict


@pytest.mark.parametrize("axis", ["3", "1e30", "-1", "1.5", "x"])
def test_an_axis_that_the_output_does_not_have_is_refused(replay, tmp_path, axis):
    values = replay.from_array(np.ones((2, 1, 3), "f4"))
    line = f"cap=0.001 median=1 axis={axis} sizes=1,1,1 limits=1e-5,1e-5,1e-5"
    model = replay.crafted(tmp_path, replay.from_array(np.ones((2, 1, 3), "f4")), values, line)
    assert replay(model).returncode in (1, 2)
    assert "PASS" not in replay(model).stdout


NUMBERS = ["float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64"]


@pytest.mark.parametrize("typed", [False, True], ids=["raw bytes", "typed fields"])
@pytest.mark.parametrize("dtype", [*NUMBERS, "bfloat16", "bool"])
def test_every_dtype_is_read_and_a_change_is_found(replay, tmp_path, dtype, typed):
    number = getattr(TensorProto, {"float32": "FLOAT", "float64": "DOUBLE"}.get(dtype, dtype.upper()))
    values = np.array([[1, 0, 1], [0, 1, 1]] if dtype == "bool" else [[1, 2, 3], [100, 0, 64]])
    if dtype.startswith(("float", "bfloat", "int")):
        values[0, 1] = -5
    values = values.astype(helper.tensor_dtype_to_np_dtype(number))
    golden = (
        helper.make_tensor("y", number, values.shape, values.flatten().tolist()) if typed else replay.from_array(values)
    )
    assert golden.HasField("raw_data") is not typed
    tolerance = "cap=0.05 median=1 sizes=1,1,1 limits=1e-4,1e-4,1e-4"
    (output,) = replay.outputs_of(replay.crafted(tmp_path, replay.from_array(values), golden, tolerance))
    assert output.max_abs == 0
    other = values.copy()
    other[1, 2] = not values[1, 2] if dtype == "bool" else values[1, 2] + 1
    model = replay.crafted(tmp_path, replay.from_array(other), golden, tolerance)
    (output,) = replay.outputs_of(model)
    assert (output.verdict, output.index, output.max_abs, output.measured) == ("fail", "[1,2]", 1, 1)
    assert output.limit < 1
    assert "at [1,2] it is off by 1, allowed are " in replay(model).stdout


def flip(file, bit):
    """Flips one bit of the last value of a golden output."""
    tensor = onnx.load_tensor(file)
    raw = bytearray(tensor.raw_data)
    size = numpy_helper.to_array(tensor).itemsize
    raw[len(raw) - size + bit // 8] ^= 1 << bit % 8
    tensor.raw_data = bytes(raw)
    file.write_bytes(tensor.SerializeToString())


@pytest.mark.parametrize(
    ("output", "name", "bit"),
    [(0, "logits", 21), (0, "logits", 31), (1, "class", 0), (2, "positive", 0), (3, "half", 9), (5, "any", 0)],
)
def test_one_changed_bit_of_a_golden_output_is_found(replay, broken, output, name, bit):
    file = broken / "test_data_set_0" / f"output_{output}.pb"
    flip(file, bit)
    done = replay(broken / "model.onnx")
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if f"{file}: output `{name}`" in line]
    assert re.search(r"FAIL: at \[[\d,]+\] it is off by \S+, allowed are \S+$", line)
    assert done.stdout.splitlines()[-1] == "FAIL: 1 of 6 outputs beyond tolerance"


def test_a_change_within_tolerance_passes(replay, broken):
    flip(broken / "test_data_set_0" / "output_0.pb", 0)
    (logits, *_) = replay.outputs_of(broken / "model.onnx")
    assert logits.verdict == "pass"


@pytest.mark.parametrize("number", [0, -1], ids=["first layer", "last layer"])
def test_one_changed_weight_is_found(replay, digits, tmp_path, number):
    folder = shutil.copytree(digits, tmp_path / "copy")
    model = onnx.load(folder / "model.onnx")
    weights = [tensor for tensor in model.graph.initializer if len(tensor.dims) > 1][number]
    array = numpy_helper.to_array(weights).copy()
    array.flat[np.abs(array).argmax()] *= 1.001
    weights.CopyFrom(numpy_helper.from_array(array, weights.name))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    done = replay(folder / "model.onnx")
    assert done.returncode == 1
    assert re.search(r"test_data_set_0/output_0\.pb: output `output`.*FAIL: at \[\d,\d\]", done.stdout)


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=str)
def test_a_value_that_is_not_finite_fails_even_where_it_is_golden(replay, tmp_path, value):
    good, bad = np.ones((2, 2), "f4"), np.array([[1, value], [1, 1]], "f4")
    tolerance = "cap=0.05 median=1 sizes=1,1 limits=1,1"
    for got, golden, problem in ((bad, good, "1 values are NaN or infinite, 0 golden"), (bad, bad, "1 golden")):
        (output,) = replay.outputs_of(
            replay.crafted(tmp_path, replay.from_array(got), replay.from_array(golden), tolerance)
        )
        assert output.verdict == "fail"
        assert output.problem.endswith(problem)


def test_another_number_of_samples_fails(replay, broken):
    file = broken / "test_data_set_0" / "output_0.pb"
    replay.write_tensor(file, numpy_helper.from_array(np.zeros((5, 5), "f4"), "logits"))
    (logits, *_) = replay.outputs_of(broken / "model.onnx")
    assert (logits.verdict, logits.problem) == ("fail", "it is float32[6,5], golden is float32[5,5]")
    assert re.search(r"`logits` float32\[6,5\], FAIL: it is", replay(broken / "model.onnx").stdout)


def test_comparing_nothing_fails(replay, broken):
    for file in (broken / "test_data_set_0").iterdir():
        tensor = onnx.load_tensor(file)
        replay.write_tensor(file, numpy_helper.from_array(numpy_helper.to_array(tensor)[:0], tensor.name))
    problems = {output.problem for output in replay.outputs_of(broken / "model.onnx")}
    assert problems == {"nothing was compared: it has no values"}


def test_a_model_that_answers_differently_each_time_fails(replay, tmp_path):
    model = replay.crafted_random(tmp_path)
    _, _, repeatable, output = replay.report_of(model, "--repeat", 2).checks
    assert output.verdict == "pass"  # the tolerance is that wide
    assert (repeatable.name, repeatable.verdict) == ("cpu/all/repeatable", "fail")
    assert repeatable.note == f"two runs on {tmp_path}/test_data_set_0 differ"
    assert replay(model).stdout.endswith("FAIL: 0 of 1 output beyond tolerance, 1 other problem\n")


def test_a_model_that_cannot_run_its_own_data_fails(replay, broken):
    file = broken / "test_data_set_0" / "input_1.pb"
    replay.write_tensor(file, numpy_helper.from_array(np.full(6, 99), "index"))
    replay.refused(1, r"model\.onnx: ONNX Runtime cannot run it: .*out of", broken / "model.onnx")
