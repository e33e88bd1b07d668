"""export --quantize int8: the float file is proven first, and the quantized one published only with its verdict."""

import json
import os

import onnx
import pytest
from support.architectures import build
from support.quantized import blocking

from jumpout_export import export_onnx
from jumpout_export.cli.results import exit_code
from jumpout_export.exit_codes import NOT_VERIFIED
from jumpout_export.quantized.settings import Quantized

pytestmark = [pytest.mark.integration, pytest.mark.slow]
SOUND = ("ResNet", "MobileNet", "squeeze and excite", "transformer")


def test_a_file_that_passes_is_published_and_says_how_it_was_judged(digits):
    report = digits.report
    assert report, blocking(report)
    names = [check.name for check in report.checks]
    assert "float/cpu/all/names" in names
    assert "float/file/onnx checker" in names
    assert {"file/onnx checker", "quantized weights", "cpu/all/top-1"} <= set(names)
    proto = onnx.load(digits.int8)
    said = {entry.key: entry.value for entry in proto.metadata_props}["jumpout_export.quantized"]
    assert said == report.provenance["jumpout_export.quantized"]
    assert said.startswith("int8, ")
    assert "ranges from 256 samples" in said
    assert "1,797 labelled samples" in said
    assert not any(entry.key.startswith("jumpout_export.tolerance") for entry in proto.metadata_props)
    assert {entry.domain for entry in proto.opset_import} == {""}
    assert digits.int8.stat().st_size < digits.float.stat().st_size / 2.5
    manifest = json.loads((digits.int8.parent / "int8.manifest.json").read_text())
    assert report.sha256 in json.dumps(manifest)
    assert said == manifest["verdicts"]["quantized"]


def test_nothing_is_published_where_samples_do_not_decide(digits, tmp_path):
    report = export_onnx(
        digits.model,
        tmp_path / "int8.onnx",
        digits.few[0][0][:8],
        calibration=[tuple(one[:16] for one in digits.few[0])],
        quantize="int8",
        quantize_calibration=digits.calibration,
        made_up=False,
    )
    assert exit_code(report) == NOT_VERIFIED
    assert "inconclusive" in blocking(report)["cpu/off/top-1"].note
    assert os.listdir(tmp_path) == []
    assert report.sha256 == ""


@pytest.mark.parametrize("name", SOUND)
def test_sound_networks_of_other_kinds_never_fail(name, tmp_path):
    model, batch = build(name, 1)
    report = export_onnx(
        model,
        tmp_path / "int8.onnx",
        batch,
        quantize="int8",
        quantize_calibration=batch,
        quantized=Quantized(accuracy=False),
        made_up=False,
    )
    assert not [check for check in report.checks if check.verdict == "fail"]
    assert report, blocking(report)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"quantize": "int4"}, r"quantize must be 'int8', got 'int4'"),
        ({"quantize": "int8"}, "takes the ranges of activations from samples as in serving"),
        ({"quantize_calibration": []}, "quantize_calibration is for a quantized export: give quantize='int8'"),
        ({"quantized": Quantized()}, "quantized is for a quantized export"),
        (
            {"quantize": "int8", "quantize_calibration": [1], "golden": "."},
            "golden and quantize='int8' exclude each other",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, text, tmp_path):
    model, batch = build("VGG", 1)
    with pytest.raises(ValueError, match=text):
        export_onnx(model, tmp_path / "model.onnx", batch, **arguments)
    assert os.listdir(tmp_path) == []
