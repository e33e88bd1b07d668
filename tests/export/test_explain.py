"""Why a network was not converted: one line that says what, where, and what to do, and nothing that is not so."""

import pytest
import torch
from support.reports import found
from torch import nn

from jumpout_export.export.publish import export_onnx

pytestmark = pytest.mark.integration

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))


class Applied(nn.Module):
    """A layer, and a function behind it."""

    def __init__(self, function):
        super().__init__()
        self.fc, self.function = nn.Linear(8, 8), function

    def forward(self, x):
        return self.function(self.fc(x))


def reason(function, tmp_path, x=X, **options):
    report = export_onnx(Applied(function), tmp_path / "model.onnx", x, **options)
    assert found(report).keys() == {"convert"}
    text = found(report)["convert"]
    assert "\n" not in text
    assert len(text) < 500
    return text


@pytest.mark.parametrize(
    ("function", "operator"),
    [(torch.linalg.svdvals, "aten._linalg_svd"), (torch.special.bessel_j0, "prims.bessel_j0")],
    ids=["svdvals", "bessel"],
)
def test_an_operator_without_translation_is_named_with_its_line(function, operator, tmp_path):
    text = reason(function, tmp_path)
    assert f"it has no ONNX operator for `{operator}`" in text
    line = Applied.forward.__code__.co_firstlineno + 1
    assert f" at {__file__}:{line}: " in text
    assert "stack trace" not in text
    assert "batch size" not in text


def split_by_rows(x):
    return torch.cat([row[None] * 2 for row in x])


def count_rows(x):
    return sum(x[index] * index for index in range(len(x))) + x


@pytest.mark.parametrize("function", [split_by_rows, count_rows])
def test_a_size_that_only_the_converter_fixes_is_not_said_to_be_the_models(function, tmp_path):
    text = reason(function, tmp_path)
    assert text.startswith("the converter fixes its batch size at 4, though PyTorch runs the model at 5")
    assert "dynamic_batch=False (--static)" in text
    assert export_onnx(Applied(function), tmp_path / "model.onnx", X, dynamic_batch=False)


def test_a_size_that_the_model_fixes_is_said_with_what_pytorch_says(tmp_path):
    text = reason(lambda x: x.view(4, 2, 4), tmp_path)
    assert text.startswith(
        "the model fixes its batch size at 4 (at 5 PyTorch itself says RuntimeError: shape '[4, 2, 4]'"
    )
    assert text.endswith("pass dynamic_batch=False (--static) to export the example's batch size only")


def test_the_axis_that_is_fixed_is_the_one_that_is_named(tmp_path):
    x = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(1))
    text = reason(lambda h: h.view(h.shape[0], 6, 2, 4), tmp_path, x, dynamic_axes={"x": {1: "steps"}})
    assert text.startswith("the model fixes the size of `steps` at 6 (at 7 PyTorch itself says RuntimeError")
    assert "batch size" not in text


def decides(x):
    return x * 2 if x.sum() > 0 else x


@pytest.mark.parametrize("function", [decides, lambda x: x * 2 if x.sum().item() > 0 else x], ids=["tensor", "item"])
def test_a_decision_by_a_value_names_the_line_and_blames_no_size(function, tmp_path):
    text = reason(function, tmp_path)
    assert f" at {__file__}:" in text
    assert "torch.where or torch.cond" in text
    assert "batch size" not in text


def refuses_to_be_traced(x):
    if torch.compiler.is_compiling():
        raise RuntimeError("no tracing")
    return x


def test_any_other_failure_names_the_line(tmp_path):
    text = reason(refuses_to_be_traced, tmp_path)
    assert text.startswith(f"torch.onnx.export failed with RuntimeError at {__file__}:")
    assert "if the open batch size is the reason, pass dynamic_batch=False (--static)" in text


@pytest.mark.parametrize(
    "function",
    [torch.fft.fft, lambda x: torch.view_as_complex(x.reshape(len(x), 4, 2)), lambda x: (x, torch.fft.rfft(x))],
    ids=["fft", "view", "one of two"],
)
def test_a_complex_output_says_what_to_return_instead(function, tmp_path):
    text = reason(function, tmp_path)
    assert "is complex64, and ONNX files have no complex outputs: return torch.view_as_real(y)" in text


def test_complex_numbers_inside_of_a_network_are_no_matter(tmp_path):
    assert export_onnx(Applied(lambda x: torch.fft.rfft(x).abs()), tmp_path / "model.onnx", X)
