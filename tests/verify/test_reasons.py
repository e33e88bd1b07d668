"""Reasons that lie in the model are the first thing that is said, with what to do; healthy neighbours pass."""

import pytest
import torch
from support.reports import found
from torch import nn

from jumpout_export.export.publish import export_onnx
from jumpout_export.render.headline import headline
from jumpout_export.verify.verify import verify_onnx

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")]

PADDING = torch.arange(5)[None] >= torch.tensor([[5], [3], [4], [2]])


class Encoder(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, batch_first=True), 1, **options)

    def forward(self, x, padding):
        return self.layers(x, src_key_padding_mask=padding)


class Pooled(Encoder):
    """The same below, with the padded positions left out of the result."""

    def forward(self, x, padding):
        return (self.layers(x, None, padding) * (~padding)[..., None]).sum(1)


def example():
    torch.manual_seed(0)
    return torch.randn(4, 5, 8), PADDING


def test_nested_tensors_are_named_with_the_cure(tmp_path):
    batch = example()
    report = export_onnx(Encoder().eval(), tmp_path / "m.onnx", batch, made_up=False)
    assert not report
    cure = "build it with nn.TransformerEncoder(..., enable_nested_tensor=False)"
    assert found(report)["nested tensors"].startswith("`layers` leaves zeros at padded positions")
    assert found(report)["nested tensors"].endswith(cure)
    assert cure in headline(report)[1]


@pytest.mark.parametrize(
    ("model", "padding"),
    [(Encoder(enable_nested_tensor=False), PADDING), (Pooled(), PADDING), (Encoder(), torch.zeros(4, 5) > 0)],
    ids=["without nested tensors", "padding left out", "no padding"],
)
def test_an_encoder_that_does_not_show_them_passes(model, padding, tmp_path):
    report = export_onnx(model.eval(), tmp_path / "m.onnx", (example()[0], padding), made_up=False)
    assert report, found(report)
    assert "nested tensors" not in {check.name for check in report.checks}


class Spectrum(nn.Module):
    def __init__(self, real):
        super().__init__()
        self.fc, self.real = nn.Linear(8, 8), real

    def forward(self, x):
        y = torch.fft.rfft(self.fc(x))
        return torch.view_as_real(y) if self.real else y


def test_verify_says_what_to_return_instead_of_complex_numbers(tmp_path):
    torch.manual_seed(0)
    x, model = torch.randn(4, 8), Spectrum(real=True).eval()
    assert export_onnx(model, tmp_path / "m.onnx", x)
    model.real = False
    report = verify_onnx(tmp_path / "m.onnx", model, x)
    assert not report
    text = "output `output` is complex64, and ONNX files have no complex outputs: return torch.view_as_real(y)"
    assert found(report)["complex outputs"] == text
    assert text in headline(report)[1]


class Recurrent(nn.Module):
    """A recurrent layer as torch makes it: the time comes first, the batch second."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.GRU(6, 5, **options), nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.layer(x)[0])


class Pairwise(nn.Module):
    """Attention among all entries of the batch: neither axis can be opened."""

    def forward(self, x):
        flat = x.flatten(0, 1)
        return (flat @ flat.mT).softmax(-1).matmul(flat).reshape(x.shape)


def test_a_batch_on_the_second_axis_is_offered_and_the_offer_works(tmp_path):
    x = torch.randn(7, 4, 6)
    note = found(export_onnx(Recurrent().eval(), tmp_path / "m.onnx", x))["batch axis"]
    assert note.endswith("dynamic_batch=False, dynamic_axes={'x': {1: 'n'}} (--static --dynamic x:1=n)")
    assert export_onnx(Recurrent().eval(), tmp_path / "m.onnx", x, dynamic_batch=False, dynamic_axes={"x": {1: "n"}})


def test_no_other_batch_axis_is_offered_where_there_is_none(tmp_path):
    assert "batch axis" not in found(export_onnx(Pairwise().eval(), tmp_path / "m.onnx", torch.randn(5, 4, 6)))
    assert export_onnx(Recurrent(batch_first=True).eval(), tmp_path / "m.onnx", torch.randn(4, 7, 6))
