"""Folding what real exporters write of a model in train mode: it becomes the eval network."""

import contextlib
import io
import logging
import warnings

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from support.noisy_files import run
from torch import nn

from jumpout_export.fold.file.fold_file import fold_onnx
from jumpout_export.verify.inspect import inspect_onnx

pytestmark = pytest.mark.integration

TRAINING = torch.onnx.TrainingMode.TRAINING


class Between(nn.Module):
    """A convolution, a noisy function, a convolution."""

    def __init__(self, noise):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        self.noise = noise

    def forward(self, x):
        y = torch.relu(self.first(x))
        return self.last(self.noise(y) if self.training else y)


def jumpout(x):
    q = (x > 0).float().mean()
    p = (0.01 + (torch.randn(()) * 0.1).abs()).clamp(max=0.6)
    rate = torch.where(q > 0, p / q, 0.0).clamp(max=0.95)
    keep = torch.rand_like(x) >= rate
    return x * keep * ((1 - rate) ** -0.75).to(x.dtype)


def jumpout_of_bernoulli(x):
    rate = torch.clamp(0.1 / ((x > 0).float().mean() + 1e-6), 0.0, 0.9)
    return x * torch.bernoulli((1 - rate).expand_as(x)) / (1 - rate) ** 0.75


def drop_path(x):  # timm
    return x * x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(0.8).div_(0.8)


def old_drop_path(x):  # timm before 0.4.12
    return x.div(0.8) * (0.8 + torch.rand((x.shape[0], 1, 1, 1))).floor_()


def masked_fill(x):
    return x.masked_fill(torch.rand_like(x) < 0.3, 0.0) / 0.7


def selected(x):
    return torch.where(torch.rand_like(x) > 0.3, x / 0.7, torch.zeros_like(x))


class Twice(nn.Module):
    def forward(self, x):
        return F.dropout(F.dropout(x, 0.3, self.training) * 2, 0.2, self.training)


SAMPLE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
MODELS = {
    "Dropout": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.3), nn.Linear(5, 2)), SAMPLE),
    "Dropout1d": (lambda: nn.Sequential(nn.Conv1d(6, 4, 3), nn.Dropout1d(0.3), nn.Conv1d(4, 2, 1)), SAMPLE[:, 0]),
    "Dropout2d": (lambda: Between(nn.Dropout2d(0.3)), SAMPLE),
    "jumpout": (lambda: Between(jumpout), SAMPLE),
    "jumpout of Bernoulli": (lambda: Between(jumpout_of_bernoulli), SAMPLE),
    "DropPath": (lambda: Between(drop_path), SAMPLE),
    "old DropPath": (lambda: Between(old_drop_path), SAMPLE),
    "masked_fill": (lambda: Between(masked_fill), SAMPLE),
    "where": (lambda: Between(selected), SAMPLE),
    "two dropouts": (lambda: nn.Sequential(nn.Conv2d(3, 2, 1), Twice(), nn.Conv2d(2, 2, 1)), SAMPLE),
    "LSTM": (lambda: First(nn.LSTM(6, 5, 2, dropout=0.2, batch_first=True)), SAMPLE[:, 0]),
    "transformer": (lambda: nn.TransformerEncoderLayer(6, 2, 8, 0.2, batch_first=True), SAMPLE[:, 0]),
}


# The old exporter knows no Dropout2d, and writes Dropout into attention by itself only in eval mode.
SCRIPTED = [name for name in MODELS if name not in ("Dropout1d", "Dropout2d", "LSTM", "transformer", "two dropouts")]


class First(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)[0]


def exported(model, x, path, dynamo):
    """The file as a user would write it who forgot model.eval()."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            if dynamo:
                torch.onnx.export(model, (x,), path, dynamo=True, external_data=False, verbose=False)
            else:
                torch.onnx.export(
                    model, (x,), path, dynamo=False, training=TRAINING, do_constant_folding=False, input_names=["x"]
                )
    finally:
        logging.disable(logging.NOTSET)
    return path


@pytest.mark.parametrize(
    ("name", "dynamo"),
    [*((name, True) for name in MODELS), *((name, False) for name in SCRIPTED)],
    ids=lambda value: value if isinstance(value, str) else "dynamo" if value else "torchscript",
)
def test_a_model_exported_in_train_mode_becomes_its_eval_network(name, dynamo, tmp_path):
    make, x = MODELS[name]
    torch.manual_seed(0)
    model = make().train()
    path = exported(model, x, tmp_path / "noisy.onnx", dynamo)
    assert not inspect_onnx(path)
    report = fold_onnx(path, tmp_path / "out.onnx")
    assert report, [check for check in report.checks if check.verdict != "pass"]
    assert report.folded
    assert inspect_onnx(tmp_path / "out.onnx")
    with torch.no_grad():
        expected = model.eval()(x).numpy()
    np.testing.assert_allclose(run(tmp_path / "out.onnx", x.numpy())[0], expected, rtol=1e-4, atol=1e-5)
    if dynamo and name in ("Dropout", "Dropout2d", "jumpout"):
        clean = onnx.load(exported(model, x, tmp_path / "clean.onnx", dynamo))
        kinds = [node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node]
        assert sorted(kinds) == sorted(node.op_type for node in clean.graph.node)


@pytest.mark.parametrize("name", ["jumpout", "masked_fill", "Dropout2d"])
def test_a_half_precision_model_is_folded_too(name, tmp_path):
    make, x = MODELS[name]
    path = exported(make().train().half(), x.half(), tmp_path / "noisy.onnx", True)
    report = fold_onnx(path, tmp_path / "out.onnx")
    assert report, [check for check in report.checks if check.verdict != "pass"]
    assert len(report.folded) == 1


def test_the_report_names_what_was_folded(tmp_path):
    path = exported(Between(jumpout).train(), SAMPLE, tmp_path / "noisy.onnx", True)
    report = fold_onnx(path, tmp_path / "out.onnx")
    (layer,) = report.folded
    assert (layer.path, layer.kind, layer.action) == ("node_mul_2 (Mul)", "mask", "identity")
    assert layer.settings == "keep 1 - `clamp_1`, scale (1 - `clamp_1`)^-0.75"
    assert report.kind == "fold"
    assert {check.name for check in report.checks} >= {
        "fold/noise", "proof/rates at zero", "proof/repeatable", "proof/optimizer", "proof/noise observed"
    }  # fmt: skip
    assert report.notes[0] == "nodes removed: 21, of them random or in training mode: 2"
