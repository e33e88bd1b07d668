"""A layer goes only if its eval forward is shown to return its input; whatever it is called."""

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from support.reports import found
from torch import nn

from jumpout_export import export_onnx
from jumpout_export.fold.network.folded import fold

X = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)) + 3
HALF = 65504.0


class DropBlock(nn.Module):
    """Known by its name, random while training; in eval it does what a test wants."""

    def __init__(self, forward):
        super().__init__()
        self.eval_forward = forward

    def forward(self, x):
        return x * (torch.rand_like(x) < 0.5) if self.training else self.eval_forward(x)


def clipped_in_place(x):
    return x.clamp_(-HALF, HALF)


WORKS = {
    "nan_to_num": lambda x: torch.nan_to_num(x.clamp(-HALF, HALF)),
    "clamp": lambda x: x.clamp(-1e30, 1e30),
    "clamp in place": clipped_in_place,
    "zeros": lambda x: torch.where(x == 0, 1e-6, x),
    "negative zeros": lambda x: x + 0.0,
    "infinities": lambda x: torch.where(x.isinf(), 0, x),
    "NaN": lambda x: torch.where(x.isnan(), 0, x),
    "NaN alone": lambda x: x if x.isfinite().all() else x.nan_to_num(),
    "large and finite": lambda x: x if x.abs().amax() < 1e6 or not x.isfinite().all() else x / 2,
    "denormals": lambda x: torch.where(x.abs() < torch.finfo(x.dtype).tiny, 0, x),
    "tiny": lambda x: torch.where(x.abs() < 1e-8, 0, x),
    "rounding": lambda x: x.bfloat16().float(),
    "all zeros": lambda x: x if x.any() else x + 1,
}
SIZES = {
    "one sample": lambda x: x if len(x) > 1 else x * 2,
    "many samples": lambda x: x if len(x) < 64 else x * 2,
    "more than are tried": lambda x: x if len(x) < 1000 else x * 2,
}
RETURNS = {
    "itself": lambda x: x,
    "dropout that is off": lambda x: F.dropout(x, 0.5, False),
    "a copy": lambda x: x.clone(),
    "a view": lambda x: x.view_as(x),
    "times one": lambda x: x * 1,
    "a wide cast": lambda x: x.double().float(),
    "itself, checked": lambda x: x if x.ndim == 4 else x * 2,
}


@pytest.mark.parametrize("forward", WORKS.values(), ids=WORKS.keys())
def test_a_layer_that_does_anything_in_eval_stays(forward):
    folded = fold(nn.Sequential(DropBlock(forward)), X)
    assert [layer.action for layer in folded.layers] == ["keep"]
    assert isinstance(folded.model[0], DropBlock)
    assert folded.notes == ("`0` (DropBlock) does more in eval mode than return its input; it stays, in eval mode",)


@pytest.mark.parametrize("forward", SIZES.values(), ids=SIZES.keys())
def test_a_layer_that_decides_by_a_size_stays(forward):
    folded = fold(nn.Sequential(DropBlock(forward)), X)
    assert [layer.action for layer in folded.layers] == ["keep"]
    assert folded.notes == ("`0` (DropBlock) decides by a size in eval mode; it stays, in eval mode",)


@pytest.mark.parametrize("forward", RETURNS.values(), ids=RETURNS.keys())
def test_a_layer_that_returns_its_input_goes(forward):
    folded = fold(nn.Sequential(DropBlock(forward)), X)
    assert [layer.action for layer in folded.layers] == ["identity"]
    assert folded.notes == ()


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: x if x.shape[0] < 1000 else x * 2,
        lambda x: x if x.shape[1] == 1 else x * 2,
        lambda x: x if x.shape[2] == x.shape[3] else x * 2,
        lambda x: x if x.numel() < 1e9 else x * 2,
    ],
    ids=["batch", "one channel", "square", "elements"],
)
def test_a_layer_that_asks_for_a_size_is_not_taken_to_hand_on_its_input(forward):
    from jumpout_export.fold.network.identity import _hands_on

    assert not _hands_on(DropBlock(forward).eval(), X)
    assert _hands_on(DropBlock(lambda x: x).eval(), X)


def test_what_every_call_really_gets_is_tried():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = DropBlock(lambda x: torch.where(x == 42.5, 0, x))

        def forward(self, x):
            return self.block(torch.full_like(self.block(x), 42.5))

    assert [layer.action for layer in fold(Twice(), X).layers] == ["keep"]


class Overflows(nn.Module):
    """Its block keeps what it gets in the range of float16."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.block = nn.Linear(8, 4), DropBlock(WORKS["nan_to_num"])

    def forward(self, x):
        return self.block(torch.exp(self.fc(x)))


@pytest.mark.integration
def test_the_file_keeps_what_the_layer_does(tmp_path):
    model, x = Overflows().eval(), torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    report = export_onnx(model, tmp_path / "model.onnx", x)
    assert report, found(report)
    kinds = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert "Clip" in kinds
    assert {"IsNaN", "Where"} & set(kinds)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"x": (x * 1000).numpy()})
    assert output.max() == HALF
    assert torch.equal(torch.from_numpy(output) == HALF, model(x * 1000) == HALF)
