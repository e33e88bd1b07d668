"""Every value inside of a file, however they are fetched."""

import pytest
import torch
from support.onnx_files import parsed, saved

from jumpout_export.runtime.session import open_session
from jumpout_export.verify.divergence import values as inside
from jumpout_export.verify.divergence.values import file_values

FILE = """<ir_version: 10, opset_import: ["" : 18, "local" : 1]>
g (float[n,2] x) => (float[n,2] y, int64[n,2] whole) {
    [first] a = Relu(x)
    [cast] whole = Cast<to = 7>(a)
    [back] b = Cast<to = 1>(whole)
    y = local.Twice(b)
}
<domain: "local", opset_import: ["" : 18]> Twice (v) => (w) { s = Neg(v) t = Neg(s) w = Add(t, v) }"""
X = torch.tensor([[-1.5, 2.5]])


def values(tmp_path, **options):
    path = saved(parsed(FILE), tmp_path / "model.onnx")
    return list(file_values(path, parsed(FILE), "cpu", "off", [X], **options))


@pytest.mark.parametrize(
    ("bytes_per_run", "runs"), [(1, 4), (16, 2), (1 << 20, 1)], ids=["one a run", "two a run", "all at once"]
)
def test_outputs_and_inner_floats_are_given_once_whatever_fits_into_a_run(bytes_per_run, runs, tmp_path, monkeypatch):
    """Inside are four values of 8 bytes: a, b and two of the function."""
    opened = []

    def counted(*arguments):
        opened.append(arguments)
        return open_session(*arguments)

    monkeypatch.setattr(inside, "open_session", counted)
    found = values(tmp_path, bytes_per_run=bytes_per_run)
    assert len(opened) == runs
    by_value = sorted(tuple(one.tensor.reshape(-1).tolist()) for one in found)
    # relu; its integer part as an output and as a float; minus that, that again, and twice that
    assert by_value == sorted([(0, 2.5), (0, 2), (0, 2), (0, -2), (0, 2), (0, 4)])
    assert [one.name for one in found if one.is_output] == ["y", "whole"]
    assert {one.where for one in found} >= {"`a` (Relu first)", "`b` (Cast back)"}


def test_integers_inside_are_not_given(tmp_path):
    kinds = {one.tensor.dtype for one in values(tmp_path) if not one.is_output}
    assert kinds == {torch.float32}
