"""Sizes that a file decides by are tried, along whatever axis: what is right at small ones only fails."""

import numpy as np
import pytest
import torch
from support.onnx_files import parsed, saved
from support.reports import found, note
from torch import nn

from jumpout_export import export_onnx, verify_onnx

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
CONSTANTS = {
    "one": np.float32(1),
    "two": np.float32(2),
    "zero": np.int64(0),
    "high": np.int64(2),
    "first": np.array([0]),
}


def verified(folder, body, **constants):
    """The report on a file with these nodes behind a ReLU, against a ReLU."""
    sample = "float[batch,3,height,width]"
    text = f"g ({sample} input) => ({sample} output) {{ h = Relu (input) s = Shape (input) {body} }}"
    return verify_onnx(saved(parsed(text, {**CONSTANTS, **constants}), folder / "model.onnx"), nn.ReLU(), X)


FACTOR = " f = Where (b, two, one) output = Mul (h, f)"


@pytest.mark.parametrize("size", [7, 15, 16, 40, 63, 64])
def test_a_file_that_is_right_up_to_a_number_of_samples_fails(tmp_path, size):
    report = verified(tmp_path, "n = Gather (s, zero) b = Greater (n, k)" + FACTOR, k=np.int64(size))
    assert any(f"batch={size + 1}/worst error" in name for name in found(report))


@pytest.mark.parametrize("size", [20, 100])
def test_a_file_that_is_right_up_to_a_height_fails(tmp_path, size):
    report = verified(tmp_path, "n = Gather (s, high) b = Greater (n, k)" + FACTOR, k=np.int64(size))
    assert any(f"height={size + 1} width=6/worst error" in name for name in found(report))


def test_a_file_that_is_right_up_to_an_area_fails(tmp_path):
    body = "a = Slice (s, two2, four) n = ReduceProd <keepdims = 0> (a) b = Greater (n, k)" + FACTOR
    report = verified(tmp_path, body, k=np.int64(900), two2=np.array([2]), four=np.array([4]))
    assert not report
    assert "height=" in " ".join(found(report))


def test_what_cannot_be_followed_is_listed_and_fails_nothing(tmp_path):
    body = "n = Gather (s, zero) a = Cast <to = 1> (n) d = Div (a, a) output = Mul (h, d)"
    report = verified(tmp_path, body)
    assert report, found(report)
    body = (
        "m = ReduceSum (h, first) n = Gather (s, zero) a = Cast <to = 1> (n) t = Mul (m, nothing) d = Div (t, a) "
        "output = Add (h, d)"
    )
    report = verified(tmp_path, body, nothing=np.float32(0))
    assert report, found(report)
    assert "other sizes are not shown" in note(report, "sizes")


def test_shapes_alone_are_no_matter(tmp_path):
    report = verified(tmp_path, "output = Reshape (h, s)")
    assert report, found(report)
    assert "decides anything but shapes" in note(report, "sizes")


class Shifted(nn.Module):
    """Adds the sample forty places before, which no batch of 17 shows."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        y = self.fc(x)
        return y + nn.functional.pad(y, (0, 0, 40, 0))[: y.shape[0]]


def test_samples_that_reach_far_beyond_the_example_are_found(tmp_path):
    report = export_onnx(Shifted().eval(), tmp_path / "m.onnx", torch.randn(2, 4))
    assert "batch=41" in note(report, "batch independence")
    assert not report


class Merged(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(x).reshape(-1).tanh().reshape(-1, 3)


def test_an_axis_made_of_samples_and_others_is_no_matter_by_itself(tmp_path):
    report = export_onnx(Merged().eval(), tmp_path / "m.onnx", torch.randn(2, 4))
    assert report
    assert note(report, "sizes") == "nothing that the file computes from sizes decides anything but shapes"


# Ones that are added up along the height, and doubled where they come to more than 32.
COUNTED = (
    "z = Mul (h, none) o = Add (z, one) c = CumSum (o, rows) m = ReduceMax <keepdims = 0> (c) b = Greater (m, k) "
    "f0 = Cast <to = 1> (b) f = Add (f0, one) output = Mul (h, f)"
)


@pytest.mark.parametrize("body", ["output = Identity (h)", COUNTED], ids=["right", "doubled from a height of 33 on"])
def test_a_file_that_counts_rows_in_its_data_is_tried_on_both_sides(body, tmp_path):
    """What it counts are ones that it makes of the sample."""
    constants = {"none": np.float32(0), "k": np.float32(32), "rows": np.int64(2)}
    report = verified(tmp_path, body, **constants)
    assert bool(report) == ("Identity" in body)
    failed = [check.name for check in report.checks if check.verdict == "fail"]
    assert bool(report) or any("height=33" in name or "height=34" in name for name in failed), failed
