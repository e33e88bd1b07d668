"""A proven float file, the quantized one that was published, and the report of that."""

from types import SimpleNamespace

import pytest
from support.quantized import changed, trained_digits

from jumpout_export import export_onnx, verify_onnx


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    model, calibration, labelled = trained_digits()
    folder = tmp_path_factory.mktemp("digits")
    example = labelled[0][0][:8]
    assert export_onnx(model, folder / "float.onnx", example, made_up=False)
    report = export_onnx(
        model,
        folder / "int8.onnx",
        example,
        calibration=labelled,
        quantize="int8",
        quantize_calibration=calibration,
        made_up=False,
    )
    return SimpleNamespace(
        model=model,
        calibration=calibration,
        labelled=labelled,
        few=[labelled[0]],
        float=folder / "float.onnx",
        int8=folder / "int8.onnx",
        report=report,
    )


@pytest.fixture
def judged(digits, tmp_path):
    """Returns a function that verifies a changed copy of the quantized file, as one, on 128 labelled samples."""

    def verify(edit, inputs=None, **options):
        path = changed(digits.int8, tmp_path, edit)
        arguments = {"quantized": True, "made_up": False, **options}
        return verify_onnx(path, digits.model, digits.few if inputs is None else inputs, **arguments)

    return verify
