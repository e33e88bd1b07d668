"""The verdict on quantized files: a healthy one passes with its numbers, and each defect is found and named."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from support.quantized import array_of, blocking, changed, put

from jumpout_export import verify_onnx
from jumpout_export.cli.results import exit_code
from jumpout_export.exit_codes import FAILED, NOT_VERIFIED
from jumpout_export.quantized.settings import Quantized
from jumpout_export.render.cases import cases_of
from jumpout_export.render.headline import headline
from jumpout_export.report import VerifyReport

pytestmark = [pytest.mark.integration, pytest.mark.slow]
WEIGHT, SCALE = "conv2.weight_quantized", "conv2.weight_scale"


def factor(name, by, index=None):
    def edit(proto):
        values = array_of(proto, name)
        if index is None:
            values = values * np.float32(by)
        else:
            values.reshape(-1)[index] *= np.float32(by)
        put(proto, name, values)

    return edit


def checks(report):
    return {check.name: check for check in report.checks}


def test_a_healthy_file_passes_with_its_numbers(digits):
    report = verify_onnx(digits.int8, digits.model, digits.labelled, quantized=True)
    assert report, blocking(report)
    found = report.quantization
    assert {row.kind for row in found.tensors} == {"weight", "activation", "output"}
    assert {row.layer for row in found.tensors if row.kind == "weight"} == {
        "conv1",
        "conv2",
        "conv3",
        "conv4",
        "classify",
    }
    assert all(row.sqnr > 20 and row.clipped < 0.01 for row in found.tensors if row.kind == "activation")
    assert found.worst_layer in {"conv1", "conv2", "conv3", "conv4", "classify"}
    assert list(found.outputs) == ["cpu/off", "cpu/all"]
    for one in found.outputs.values():
        assert (one.top1, one.nll, one.samples_needed) == ("ok", "ok", None)
        assert one.effect.labelled == one.effect.samples == 1797
    assert "rounded to integers, within the limits that were asked for" in headline(report)[1]
    assert VerifyReport.model_validate(json.loads(report.model_dump_json())) == report


def test_a_file_is_judged_against_the_float_file_as_well(digits):
    report = verify_onnx(digits.int8, digits.float, digits.labelled, quantized=True, made_up=False)
    assert report, blocking(report)
    assert report.against == str(digits.float)
    assert report.quantization.outputs["cpu/all"].effect.labelled == 1797


def test_the_strict_verdict_names_the_switch_and_does_not_use_it(digits):
    report = verify_onnx(digits.int8, digits.model, digits.few, made_up=False)
    assert not report
    assert report.quantization is None
    assert "18 DequantizeLinear, 8 QuantizeLinear" in checks(report)["quantized"].note
    assert "--quantized" in checks(report)["quantized"].note
    assert "`quantized`" in headline(report)[1]
    assert exit_code(report) == FAILED
    healthy = verify_onnx(digits.float, digits.model, digits.few, made_up=False)
    assert healthy
    assert "quantized" not in checks(healthy)


@pytest.mark.parametrize("index", [None, 3], ids=["every channel", "one channel"])
def test_a_doubled_scale_of_a_weight_fails_and_names_the_layer(judged, index):
    report = judged(factor(SCALE, 2, index))
    wrong = blocking(report)["quantized weights"]
    assert wrong.verdict == "fail"
    assert wrong.measured > 10
    assert "`conv2`" in wrong.note
    assert WEIGHT in wrong.note
    assert report.first_divergence == "conv2"
    assert checks(report)["without quantization"].verdict == "pass"  # nothing else is wrong
    assert exit_code(report) == FAILED


def test_a_scale_that_is_a_little_off_fails(judged):
    assert judged(factor(SCALE, 1.01)).first_divergence == "conv2"


@pytest.mark.parametrize(("value", "what"), [(0.0, "zero"), (np.nan, "NaN"), (np.inf, "infinite"), (-0.01, "negative")])
def test_a_scale_that_is_no_positive_number_fails(judged, value, what):
    def edit(proto):
        scale = array_of(proto, SCALE)
        scale[5] = value
        put(proto, SCALE, scale)

    wrong = blocking(judged(edit))["quantization scales"]
    assert wrong.verdict == "fail"
    assert f"`{WEIGHT}` (DequantizeLinear): 1 of 32 scales {what}, the first at index 5" in wrong.note


def test_a_range_that_is_far_too_small_fails_and_names_the_tensor(judged):
    report = judged(factor("relu_2_scale", 0.125))
    wrong = blocking(report)["clipped"]
    assert wrong.verdict == "fail"
    assert "`relu_2`" in wrong.note
    assert "conv3" in wrong.note
    assert judged(factor("relu_2_scale", 1.05), quantized=Quantized(accuracy=False))  # a little too large is no defect


def test_a_pair_with_two_scales_fails(judged):
    def edit(proto):
        proto.graph.initializer.append(helper.make_tensor("other", 1, [], [0.5]))
        node = next(
            one for one in proto.graph.node if one.op_type == "DequantizeLinear" and one.input[1] == "relu_2_scale"
        )
        node.input[1] = "other"

    assert "`relu_2`: QuantizeLinear has another scale" in blocking(judged(edit))["quantization scales"].note


def test_what_is_wrong_beside_the_rounding_fails_too(judged):
    def edit(proto):
        gemm = next(node for node in proto.graph.node if node.op_type == "Gemm")
        next(one for one in gemm.attribute if one.name == "alpha").f = 1.02

    report = judged(edit)
    assert blocking(report)["without quantization"].verdict == "fail"
    assert report.first_divergence == "classify"


def test_a_stated_limit_on_the_noise_fails_below_it(judged):
    wrong = blocking(judged(lambda proto: None, quantized=Quantized(min_sqnr=60, accuracy=False)))
    assert set(wrong) == {"quantization noise", "cpu/off/noise", "cpu/all/noise"}
    assert "limit 60 dB" in wrong["quantization noise"].note
    assert wrong["quantization noise"].limit == pytest.approx(1e-3)
    assert judged(lambda proto: None, quantized=Quantized(min_sqnr=20, accuracy=False))


def test_too_few_samples_are_inconclusive_and_say_how_many_would_do(judged, digits):
    x, y = digits.few[0]
    report = judged(lambda proto: None, inputs=[(x[:40], y[:40])])
    assert set(blocking(report)) >= {"cpu/off/top-1", "cpu/all/top-1"}
    check = blocking(report)["cpu/all/top-1"]
    assert check.verdict == "not_run"
    assert check.note.startswith("inconclusive: ")
    found = report.quantization.outputs["cpu/all"]
    assert found.top1 == "inconclusive"
    assert 100 < found.samples_needed < 5000
    assert f"about {found.samples_needed:,} labelled samples would decide" in check.note
    assert exit_code(report) == NOT_VERIFIED
    assert next(case for case in cases_of(report) if case.name == "cpu/all/top-1").verdict == "not_run"
    x, y = (torch.cat(one) for one in zip(*digits.labelled, strict=True))
    assert judged(lambda proto: None, inputs=[(x, y)])


def test_samples_without_labels_are_inconclusive_where_accuracy_is_asked_for(judged, digits):
    x = digits.few[0][0]
    report = judged(lambda proto: None, inputs=[x])
    assert "inconclusive: the batches hold no labels" in blocking(report)["cpu/off/top-1"].note
    assert "--no-accuracy" in blocking(report)["cpu/off/likelihood"].note
    assert exit_code(report) == NOT_VERIFIED
    assert judged(lambda proto: None, inputs=[x], quantized=Quantized(accuracy=False))


def test_labels_that_do_not_fit_are_no_labels(judged, digits):
    x = digits.few[0][0]
    report = judged(lambda proto: None, inputs=[{"x": x, "labels": torch.zeros(len(x), 3)}])
    assert blocking(report)["cpu/off/top-1"].verdict == "not_run"


def test_accuracy_that_is_lost_fails(digits, tmp_path):
    """The scores of two classes change places: nothing of the rounding is wrong, and every such sample is."""

    def edit(proto):
        for name in ("classify.bias_quantized", "classify.bias_quantized_scale"):
            values = array_of(proto, name)
            values[[3, 8]] = values[[8, 3]]
            put(proto, name, values)
        for name in ("classify.weight_quantized", "classify.weight_scale"):
            values = array_of(proto, name)
            values[[3, 8]] = values[[8, 3]]
            put(proto, name, values)

    path = changed(digits.int8, tmp_path, edit)
    report = verify_onnx(path, digits.model, digits.labelled, quantized=True, made_up=False)
    found = report.quantization.outputs["cpu/off"]
    assert (found.top1, found.nll) == ("fails", "fails")
    assert blocking(report)["cpu/off/top-1"].verdict == "fail"
    assert 0.1 < blocking(report)["cpu/off/top-1"].measured < 0.25
    assert report.first_divergence == "classify"


def test_another_form_is_no_verdict_and_says_which_one_is(digits, tmp_path):
    def edit(proto):
        node = helper.make_node("DynamicQuantizeLinear", ["input"], ["a", "b", "c"])
        proto.graph.node.append(node)

    report = verify_onnx(changed(digits.int8, tmp_path, edit), digits.model, digits.few, quantized=True)
    assert "QuantFormat.QDQ" in blocking(report)["quantization form"].note
    assert exit_code(report) == NOT_VERIFIED


def test_a_float_file_is_not_judged_as_a_quantized_one(digits):
    report = verify_onnx(digits.float, digits.model, digits.few, quantized=True)
    assert "it is not quantized" in blocking(report)["quantization form"].note
    assert exit_code(report) == NOT_VERIFIED


def test_quantized_is_a_switch_or_limits(digits):
    with pytest.raises(TypeError, match=r"quantized must be True, False or Quantized\(\.\.\.\) with limits, got int"):
        verify_onnx(digits.int8, digits.model, digits.few, quantized=3)
    with pytest.raises(ValueError, match=r"max_clipped must be a share in \[0, 1\], got 20"):
        Quantized(max_clipped=20)
    with pytest.raises(ValueError, match="nll_margin must be at least 0 nats, got -1"):
        Quantized(nll_margin=-1)
    with pytest.raises(ValueError, match="min_sqnr must be a number of dB, got nan"):
        Quantized(min_sqnr=float("nan"))


def test_other_names_of_outputs_fail(judged):
    def edit(proto):
        for node in proto.graph.node:
            node.output[:] = ["scores" if name == "output" else name for name in node.output]
        proto.graph.output[0].name = "scores"

    assert "the file's outputs are scores" in blocking(judged(edit))["cpu/off/names"].note


def test_the_report_is_rendered_with_its_tensors(digits, tmp_path):
    from jumpout_export.render import write_report

    write_report(digits.report, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "What rounding costs" in page
    assert "conv2.weight_quantized" in page
    assert onnx.load(digits.int8).graph.node[0].op_type == "DequantizeLinear"
