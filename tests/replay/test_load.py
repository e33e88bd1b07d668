"""`jumpout-load`: counts what it sent, judges every answer, and its numbers are what they say."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from jumpout_export.report import VerifyReport


@pytest.fixture
def load(replay):
    """Runs a load and returns its exit code and its checks by name."""

    def run(model, *arguments, **settings):
        done = replay(model, "--json", *arguments, program=replay.load, **settings)
        report = VerifyReport.model_validate_json(done.stdout)
        assert report.passed is (done.returncode == 0)
        assert not done.stderr
        return done.returncode, {check.name.removeprefix("cpu/load/"): check for check in report.checks}

    return run


def test_four_clients_on_one_session_get_right_answers_in_flat_memory(load, digits):
    code, checks = load(digits / "model.onnx", "--clients=4", "--requests", 20000, "--batches", "1,2,7,16")
    assert code == 0
    assert checks["answers"].note == "answers beyond tolerance of the golden outputs, of 22000 from 4 clients"
    assert [checks[name].measured for name in ("answers", "repeatable", "requests")] == [0, 0, 20000]
    assert checks["samples"].measured == 20000 / 4 * (1 + 2 + 7 + 16)
    assert checks["memory"].measured <= checks["memory"].limit == 4
    assert 0 < checks["latency p50"].measured <= checks["latency p95"].measured <= checks["latency p99"].measured
    ratio = checks["samples per second"].measured / checks["requests per second"].measured
    assert ratio == pytest.approx(26 / 4)
    assert 0 < checks["output_0/worst error"].measured < checks["output_0/worst error"].limit


def test_the_text_says_what_the_report_says(replay, digits):
    done = replay.run(replay.load, digits / "model.onnx", "--requests", 40, "--batches", "3", "--warmup=5")
    assert (done.returncode, done.stderr) == (0, "")
    first, sent, answers, per_second, latency, memory, verdict = done.stdout.splitlines()
    assert re.fullmatch(r".*model\.onnx: ONNX Runtime \S+ on cpu, 4 clients", first)
    assert re.fullmatch(r"sent: 40 requests, 120 samples in \S+ s, after 5 requests to warm up", sent)
    assert answers == "answers: 0 beyond tolerance of the golden outputs, 0 with other bits than alone"
    assert re.fullmatch(r"per second: \S+ requests, \S+ samples", per_second)
    assert re.fullmatch(r"latency: \S+ ms p50, \S+ ms p95, \S+ ms p99", latency)
    assert re.fullmatch(r"memory: \S+ MiB, \S+ MiB at the end", memory)
    assert verdict == "PASS: every answer within tolerance of the golden outputs"


def test_it_sends_for_as_long_as_it_is_told(load, digits):
    code, checks = load(digits / "model.onnx", "--duration=0.3", "--warmup", 1)
    assert code == 0
    (seconds,) = re.findall(r"requests sent in (\S+) s, after 1 to warm up", checks["requests"].note)
    assert float(seconds) >= 0.3
    rate = checks["requests per second"].measured
    assert checks["requests"].measured == pytest.approx(rate * float(seconds), rel=0.01)


def changed_weight(folder, target):
    """A copy of an export with one weight off by a thousandth."""
    copy = Path(shutil.copytree(folder, target))
    model = onnx.load(copy / "model.onnx")
    weights = next(tensor for tensor in model.graph.initializer if len(tensor.dims) > 1)
    array = numpy_helper.to_array(weights).copy()
    array.flat[np.abs(array).argmax()] *= 1.001
    weights.CopyFrom(numpy_helper.from_array(array, weights.name))
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    return copy / "model.onnx"


def test_a_changed_weight_is_found(load, replay, digits, tmp_path):
    model = changed_weight(digits, tmp_path / "copy")
    code, checks = load(model, "--requests", 40, "--batches", "8,16")
    assert code == 1
    assert (checks["answers"].verdict, checks["answers"].measured) == ("fail", 44)
    assert checks["repeatable"].verdict == "pass"
    assert checks["output_0/worst error"].measured > checks["output_0/worst error"].limit
    done = replay(model, "--requests", 40, "--batches=8", program=replay.load)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("FAIL: cpu/load/answers: answers beyond tolerance")


def test_answers_that_change_are_counted(load, replay, tmp_path):
    code, checks = load(replay.crafted_random(tmp_path), "--requests", 50)
    assert code == 1
    assert (checks["answers"].verdict, checks["answers"].measured) == ("pass", 0)  # the tolerance is that wide
    assert (checks["repeatable"].verdict, checks["repeatable"].measured) == ("fail", 55)


def passing_through(replay, folder, shape, batch_axis=None):
    """A model whose output is its input, of that shape, and golden data of 1, 2, 3, ..."""
    data = np.arange(1, 1 + int(np.prod(shape)), dtype=np.float32).reshape(shape)
    channels = shape[1]
    tolerance = f"cap=0.001 median=1 sizes={','.join(['1'] * channels)} limits={','.join(['0'] * channels)}"
    model = replay.crafted(folder, replay.from_array(data), replay.from_array(data), tolerance)
    dims = [("batch" if axis == batch_axis else length) for axis, length in enumerate(shape)]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name in "xy")
    proto = onnx.load(model)
    proto.graph.CopyFrom(helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y]))
    model.write_bytes(proto.SerializeToString())
    replay.write_tensor(folder / "test_data_set_0" / "input_0.pb", numpy_helper.from_array(data, "x"))
    return model


def test_a_fixed_batch_is_sent_and_counted_as_it_is(load, replay, tmp_path):
    model = passing_through(replay, tmp_path, (8, 3))
    code, checks = load(model, "--requests", 100)
    assert (code, checks["requests"].measured, checks["samples"].measured) == (0, 100, 800)
    assert load(model, "--requests", 100, "--batches", 8)[1]["samples"].measured == 800
    replay.refused(2, "it takes batches of 8 only; leave --batches out", model, "--batches=4,16", program=replay.load)


@pytest.mark.parametrize("axis", [0, 1])
def test_samples_lie_along_the_axis_that_is_open_for_them(load, replay, tmp_path, axis):
    model = passing_through(replay, tmp_path, (2, 2, 3), axis)
    code, checks = load(model, "--requests", 60, "--batches", "1,2,3")
    assert (code, checks["samples"].measured) == (0, 120)


def test_a_model_whose_answers_depend_on_the_batch_is_found(load, replay, tmp_path):
    model = passing_through(replay, tmp_path, (2, 3), 0)
    proto = onnx.load(model)
    proto.graph.ClearField("node")
    proto.graph.node.append(helper.make_node("Shape", ["x"], ["s"], start=0, end=1))
    proto.graph.node.append(helper.make_node("Cast", ["s"], ["f"], to=TensorProto.FLOAT))
    proto.graph.node.append(helper.make_node("Constant", [], ["two"], value_float=2.0))
    proto.graph.node.append(helper.make_node("Div", ["f", "two"], ["factor"]))
    proto.graph.node.append(helper.make_node("Mul", ["x", "factor"], ["y"]))
    model.write_bytes(proto.SerializeToString())
    assert replay(model).returncode == 0
    assert load(model, "--requests", 20, "--batches=2")[0] == 0
    code, checks = load(model, "--requests", 20, "--batches=2,3")
    assert (code, checks["answers"].measured) == (1, 11)


def test_golden_data_without_samples_is_an_error(replay, broken):
    for file in (broken / "test_data_set_0").iterdir():
        tensor = onnx.load_tensor(file)
        replay.write_tensor(file, numpy_helper.from_array(numpy_helper.to_array(tensor)[:0], tensor.name))
    reason = "test_data_set_0: it holds no samples, so there is nothing to send"
    replay.refused(2, reason, broken / "model.onnx", program=replay.load)


def test_inputs_of_different_lengths_are_an_error(replay, broken):
    file = broken / "test_data_set_0" / "input_1.pb"
    tensor = onnx.load_tensor(file)
    replay.write_tensor(file, numpy_helper.from_array(numpy_helper.to_array(tensor)[:4], tensor.name))
    reason = "its inputs have different numbers of samples, 6 and 4"
    replay.refused(2, reason, broken / "model.onnx", program=replay.load)


def test_every_golden_set_is_sent(load, broken):
    shutil.copytree(broken / "test_data_set_0", broken / "test_data_set_1")
    assert load(broken / "model.onnx", "--requests", 80)[0] == 0
    file = broken / "test_data_set_1" / "output_0.pb"
    tensor = onnx.load_tensor(file)
    file.write_bytes(numpy_helper.from_array(numpy_helper.to_array(tensor) + 1, tensor.name).SerializeToString())
    code, checks = load(broken / "model.onnx", "--requests", 80, "--without-manifest")
    assert (code, checks["answers"].measured) == (1, 44)


def test_a_temporary_folder_that_cannot_be_written_does_not_matter(load, digits):
    code, _ = load(digits / "model.onnx", "--requests", 20, env={**os.environ, "TMPDIR": "/proc"})
    assert code == 0


@pytest.mark.parametrize("count", [1, 2, 20, 1001])
def test_percentiles_are_those_of_numpy(replay, sanitized, count):
    values = np.random.default_rng(count).lognormal(0, 3, count)
    shares = [0.001, 0.5, 0.95, 0.99, 1]
    done = replay.run(
        replay.sanitized / "replay-latencies", *shares, input="\n".join(f"{value:.17g}" for value in values)
    )
    assert done.returncode == 0
    exact = np.quantile(values, shares, method="inverted_cdf")
    np.testing.assert_allclose([float(line) for line in done.stdout.split()], exact, rtol=0.004)


def test_a_duration_of_any_size_has_a_class(replay, sanitized):
    """Zero, and more than eighteen minutes."""
    for value, least, most in (("0", 0, 2e-6), ("1e300", 1e6, 1.1e6)):
        done = replay.run(replay.sanitized / "replay-latencies", 0.5, input=value)
        assert least <= float(done.stdout) <= most
