"""Noise, clipping and outputs against oracles: ONNX Runtime's own tool, NumPy by hand, SciPy."""

import math

import numpy as np
import onnx
import onnxruntime
import pytest
import scipy.stats
import torch
from onnx import helper
from onnxruntime.quantization import CalibrationDataReader, qdq_loss_debug
from support.quantized import array_of

from jumpout_export import verify_onnx
from jumpout_export.quantized.power import Power, decibels
from jumpout_export.quantized.settings import Quantized

pytestmark = [pytest.mark.integration, pytest.mark.slow]


class Reader(CalibrationDataReader):
    def __init__(self, batches):
        self._batches = iter([x.numpy() for x, _ in batches])

    def get_next(self):
        batch = next(self._batches, None)
        return None if batch is None else {"input": batch}


@pytest.fixture(scope="module")
def report(digits):
    return verify_onnx(digits.int8, digits.model, digits.labelled[:2], quantized=True, made_up=False)


def test_signal_to_noise_is_that_of_onnx_runtimes_own_tool(digits, report, tmp_path):
    """Against the float file, whose tensors have the same names."""
    found = {}
    for name, path in (("float", digits.float), ("int8", digits.int8)):
        qdq_loss_debug.modify_model_output_intermediate_tensors(str(path), str(tmp_path / f"{name}.onnx"))
        found[name] = qdq_loss_debug.collect_activations(str(tmp_path / f"{name}.onnx"), Reader(digits.labelled[:2]))
    matching = qdq_loss_debug.create_activation_matching(found["int8"], found["float"])
    matching = {name: match for name, match in matching.items() if "float" in match}
    errors = qdq_loss_debug.compute_activation_error(matching)
    rows = {row.name: row for row in report.quantization.tensors if row.kind == "activation"}
    same = set(rows) & set(errors)
    assert {"relu", "relu_1", "relu_2", "relu_3"} <= same
    for name in same:
        assert rows[name].sqnr == pytest.approx(errors[name]["xmodel_err"], abs=0.01), name


def test_signal_to_noise_of_weights_is_that_of_numpy(digits, report):
    proto = onnx.load(digits.int8)
    scale = array_of(proto, "classify.weight_scale").astype(np.float64)
    rounded = array_of(proto, "classify.weight_quantized").astype(np.float64) * scale[:, None]
    own = digits.model.classify.weight.detach().double().numpy()
    wanted = 10 * math.log10((own**2).sum() / ((own - rounded) ** 2).sum())
    row = next(row for row in report.quantization.tensors if row.name == "classify.weight_quantized")
    assert row.sqnr == pytest.approx(wanted, abs=1e-6)
    assert (row.layer, row.scales, row.integers) == ("classify", 10, "int8")


def test_the_clipped_share_is_counted(digits, tmp_path):
    proto = onnx.load(digits.int8)
    tensor = next(one for one in proto.graph.initializer if one.name == "relu_2_scale")
    tensor.CopyFrom(onnx.numpy_helper.from_array(array_of(proto, "relu_2_scale") / np.float32(4), "relu_2_scale"))
    (tmp_path / "clipped.onnx").write_bytes(proto.SerializeToString())
    found = verify_onnx(
        tmp_path / "clipped.onnx", digits.model, digits.labelled[:2], quantized=Quantized(accuracy=False), made_up=False
    )
    proto.graph.output.append(helper.make_empty_tensor_value_info("relu_2"))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    values = np.concatenate([session.run(["relu_2"], {"input": x.numpy()})[0] for x, _ in digits.labelled[:2]])
    scale = float(array_of(proto, "relu_2_scale"))
    largest = 255.5 * scale + 0.05 * 256 * scale
    row = next(row for row in found.quantization.tensors if row.name == "relu_2")
    assert row.clipped == (values > largest).mean()
    assert row.clipped > 0.01


def test_accuracy_and_likelihood_are_compared_sample_by_sample(digits, report):
    """McNemar by SciPy's binomial test, the likelihood's interval by its normal one, from sessions of our own."""
    session = onnxruntime.InferenceSession(digits.int8)
    x, y = (torch.cat(one) for one in zip(*digits.labelled[:2], strict=True))
    with torch.no_grad():
        before = digits.model(x).double()
    after = torch.from_numpy(session.run(None, {"input": x.numpy()})[0]).double()
    right = [(scores.argmax(1) == y).numpy() for scores in (before, after)]
    gained, lost = int((right[1] & ~right[0]).sum()), int((right[0] & ~right[1]).sum())
    effect = report.quantization.outputs["cpu/all"].effect
    wanted = scipy.stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert effect.mcnemar_p == pytest.approx(wanted)
    assert (effect.top1_before, effect.top1_after) == (right[0].mean(), right[1].mean())
    nll = [torch.nn.functional.cross_entropy(scores, y, reduction="none").numpy() for scores in (before, after)]
    change = nll[1] - nll[0]
    low, high = scipy.stats.norm.interval(0.95, change.mean(), scipy.stats.sem(change))
    assert (effect.nll_change_low, effect.nll_change_high) == pytest.approx((low, high), rel=1e-3, abs=1e-9)


def test_power_adds_up_and_knows_its_ends():
    exact, noise = np.random.default_rng(0).normal(size=(2, 1000))
    power = Power()
    for part in (slice(0, 300), slice(300, 1000)):
        power.add(exact[part], exact[part] + 0.1 * noise[part])
    assert power.sqnr == pytest.approx(20 * math.log10(np.linalg.norm(exact) / np.linalg.norm(0.1 * noise)))
    assert decibels(0.1) == pytest.approx(20)
    nothing, dead = Power(), Power()
    nothing.add(exact, exact)
    dead.add(np.zeros(3), np.ones(3))
    assert (nothing.sqnr, dead.sqnr) == (math.inf, -math.inf)
