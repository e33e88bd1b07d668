"""Verification of a saved file: a good one passes, and what no comparison can answer is said."""

import copy
import re

import onnxruntime
import pytest
import torch
from support.verified import SAMPLES, Net, found

from jumpout_export.errors import LoadError
from jumpout_export.verify.verify import verify_onnx

pytestmark = pytest.mark.integration


def test_a_good_file_passes_at_both_levels_and_all_sizes(good):
    model, path = good
    report = verify_onnx(path, model, [(SAMPLES[:16], torch.zeros(16, dtype=torch.int64)), SAMPLES[16:]])
    assert report
    assert report.kind == "verify"
    assert report.providers["cpu"].verdict == "pass"
    names = {check.name for check in report.checks}
    for level in ("off", "all"):
        groups = [*(f"batch={size}" for size in (1, 2, 3, 17)), "data"]
        assert {f"cpu/{level}/{group}/worst error" for group in groups} <= names
        assert {f"cpu/{level}/{kind}" for kind in ("names", "outputs", "finite", "repeatable")} <= names
    # What is larger than the example by more than one is run as it is served.
    served = {f"cpu/all/batch=18/{kind}" for kind in ("worst error", "top-1")}
    assert {name for name in names if "/batch=18/" in name} == served
    data = next(check for check in report.checks if check.name == "cpu/all/data/worst error")
    assert "; 40 samples, top-1 agrees on 40" in data.note
    assert 0 < data.measured < data.limit < 1e-5
    note = "8 x torch's own error against float64 + 16 eps, at most 0.001 in float32, of the channel's size"
    assert f"error limit per output: {note}" in report.notes


def test_the_measured_error_is_what_a_bare_session_shows(good):
    model, path = good
    report = verify_onnx(path, model, SAMPLES)
    (got,) = onnxruntime.InferenceSession(path).run(None, {"x": SAMPLES.numpy()})
    with torch.no_grad():
        exact = copy.deepcopy(model).eval().double()(SAMPLES.double())
    error = (torch.from_numpy(got).double() - exact).abs()
    check = next(check for check in report.checks if check.name == "cpu/all/data/worst error")
    sample, channel = (int(number) for number in re.match(r".*sample (\d+), index \((\d+),\)", check.note).groups())
    assert check.measured == pytest.approx(error[sample, channel].item(), rel=1e-6)


def test_a_model_random_in_eval_mode_is_a_failure_not_an_exception(good):
    class Noisy(Net):
        def forward(self, x):
            return super().forward(x) * torch.rand(())

    model, path = good
    noisy = Noisy()
    noisy.load_state_dict(model.state_dict())
    report = verify_onnx(path, noisy, SAMPLES)
    assert "draws random numbers in eval mode" in found(report)["randomness"].note
    assert report.providers["cpu"].verdict == "not_run"
    assert not report


def test_a_broken_batchnorm_fails_in_verification_too(good):
    model, path = good
    broken = copy.deepcopy(model)
    broken.bn.running_var[0] = torch.nan
    report = verify_onnx(path, broken, SAMPLES)
    assert "`bn` running_var" in found(report)["batchnorm"].note


def test_a_model_that_does_not_run_in_float64_is_compared_coarser_and_said_so(good, tmp_path):
    class Fixed(Net):
        def forward(self, x):
            return super().forward(x.float())

    model, path = good
    fixed = Fixed()
    fixed.load_state_dict(model.state_dict())
    report = verify_onnx(path, fixed, SAMPLES)
    assert report
    assert any(
        note.startswith("compared with PyTorch's own precision, because the model fails in") for note in report.notes
    )
    with torch.no_grad():
        fixed.linear.weight[0, 0] += 1e-2
    assert not verify_onnx(path, fixed, SAMPLES)


def test_comparing_nothing_is_an_error(good):
    model, path = good
    for nothing in ([], iter(())):
        with pytest.raises(ValueError, match="nothing to compare: inputs is empty"):
            verify_onnx(path, model, nothing)
    with pytest.raises(ValueError, match=r"example: the batch must not be empty, got shape \(0, 1, 8, 8\)"):
        verify_onnx(path, model, SAMPLES[:0])
    with pytest.raises(TypeError, match="inputs must be a batch or an iterable of batches, got int"):
        verify_onnx(path, model, 3)


def test_an_unknown_provider_is_an_error(good):
    model, path = good
    with pytest.raises(ValueError, match="providers must be of cpu, cuda, openvino, got 'tensorrt'"):
        verify_onnx(path, model, SAMPLES, ("cpu", "tensorrt"))
    with pytest.raises(ValueError, match="providers must be of cpu, cuda, openvino, got none"):
        verify_onnx(path, model, SAMPLES, ())


def test_an_unreadable_file_is_an_error(good, tmp_path):
    model, path = good
    (tmp_path / "cut.onnx").write_bytes(path.read_bytes()[:500])
    with pytest.raises(LoadError, match=r"cut.onnx: not a readable ONNX model"):
        verify_onnx(tmp_path / "cut.onnx", model, SAMPLES)
    with pytest.raises(LoadError, match=r"none.onnx: no such file"):
        verify_onnx(tmp_path / "none.onnx", model, SAMPLES)


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this onnxruntime has the CUDA provider"
)
def test_cuda_that_cannot_be_used_is_not_run_and_not_passed(good):
    model, path = good
    report = verify_onnx(path, model, SAMPLES, ("cpu", "cuda"))
    assert report.providers["cpu"].verdict == "pass"
    assert report.providers["cuda"].verdict == "not_run"
    assert "has no CUDAExecutionProvider" in report.providers["cuda"].reason
    assert "pip install 'jumpout-export[onnx-gpu]'" in report.providers["cuda"].reason
    assert not report
    assert {check.name: check.verdict for check in found(report).values()} == {"cuda": "not_run"}


def test_the_model_and_the_generators_stay_as_they_were(good):
    model, path = good
    model = copy.deepcopy(model).train()
    before = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    verify_onnx(path, model, SAMPLES)
    torch.testing.assert_close(model.state_dict(), before[0], rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), before[1])
    assert all(module.training for module in model.modules())
