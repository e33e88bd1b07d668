"""Exported programs: their eval network, and what of training mode is folded or refused."""

import copy
import warnings

import onnx
import pytest
import torch
import torch.nn.functional as F
from support.noisy import line_of
from support.programs import exported, trained
from torch import nn
from typer.testing import CliRunner

from jumpout_export import export_onnx, fold_model, verify_onnx
from jumpout_export.cli.app import app
from jumpout_export.errors import LoadError, NotFoldableError
from jumpout_export.fold.network.audit import audit_model
from jumpout_export.fold.network.folded import fold
from jumpout_export.program.file import load_program
from jumpout_export.program.network import as_module

pytestmark = pytest.mark.integration

X = torch.linspace(-1, 2, 4 * 64).reshape(4, 1, 8, 8)


class Net(nn.Module):
    def __init__(self, functional=False):
        super().__init__()
        self.functional = functional
        self.conv, self.bn = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.drops = nn.Sequential(nn.RReLU(), nn.Dropout(0.5), nn.Dropout2d(0.3))
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.1, batch_first=True)
        self.lstm, self.alpha = nn.LSTM(4, 4, 2, dropout=0.2, batch_first=True), nn.AlphaDropout(0.2)
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        x = self.drops(self.bn(self.conv(x))).flatten(2).transpose(1, 2)
        x = self.alpha(self.lstm(self.attention(x, x, x)[0])[0].mean(1))
        if self.functional:
            x = F.dropout(x, 0.4, self.training)
        return self.linear(x)


class First(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.mean(1))[0]


class AlwaysOn(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, training=True)


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x) if self.training else x


def evaluated(model, x=X):
    with torch.no_grad():
        return copy.deepcopy(model).eval()(x)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return trained(Net())


@pytest.mark.parametrize("mode", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("loaded", [False, True], ids=["in memory", "file"])
def test_a_program_folds_to_the_modules_eval_network_bit_for_bit(net, mode, loaded, tmp_path):
    program = exported(net, mode)
    if loaded:
        torch.export.save(program, tmp_path / "net.pt2")
        program = load_program(tmp_path / "net.pt2")
    folded = fold(program, X)
    assert torch.equal(evaluated(folded.model), evaluated(net))
    assert [(layer.path, layer.kind, layer.action) for layer in folded.layers] == (
        [
            ("drops.0", "rrelu", "leaky_relu"),
            ("drops.1", "dropout", "identity"),
            ("drops.2", "feature_dropout", "identity"),
            ("attention", "dropout", "identity"),
            ("lstm", "lstm", "identity"),
            ("alpha", "alpha_dropout", "identity"),
        ]
        if mode
        else []
    )
    assert folded.notes == (("in training mode in the program: `bn`; its running statistics are used",) if mode else ())
    assert dict(folded.model.named_parameters()).keys() == dict(net.named_parameters()).keys()


def test_a_program_from_train_mode_is_published_and_equals_the_module(small, tmp_path):
    net = nn.Sequential(small, First(nn.LSTM(6, 3, batch_first=True)))  # whose first state is float32 in the graph
    report = export_onnx(exported(net, True), tmp_path / "net.onnx", X)
    assert report, [check for check in report.checks if check.verdict != "pass"]
    assert "8 x torch's own error against float64" in " ".join(report.notes)  # its float64 copy runs
    assert verify_onnx(tmp_path / "net.onnx", net, X)
    assert "0.0.weight" in {tensor.name for tensor in onnx.load(tmp_path / "net.onnx").graph.initializer}
    other = copy.deepcopy(net)
    with torch.no_grad():
        other[0][0].bias[0] += 0.1
    assert not verify_onnx(tmp_path / "net.onnx", exported(other, False), X)


def test_a_decomposed_program_is_taken_too():
    model = trained(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.RReLU(), nn.Dropout(0.5)))
    for mode in (False, True):
        program = exported(model, mode)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = program.run_decompositions()
        torch.testing.assert_close(fold_model(program, X)(X), evaluated(model))


def test_noise_that_is_no_layer_is_refused_with_node_module_file_and_line():
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), Noise())
    with pytest.raises(NotFoldableError, match=r"the exported program draws random numbers") as error:
        fold_model(exported(model, True), X)
    assert error.value.modules == ("2",)
    line = line_of(Noise, "rand_like")
    assert f"node `rand_like` (aten.rand_like.default) in module `2` at {__file__}:{line}" in str(error.value)


def test_functional_dropout_is_off_in_a_program_from_train_mode_and_a_note_says_so():
    torch.manual_seed(0)
    model = trained(Net(functional=True))
    folded = fold(exported(model, True), X)
    assert torch.equal(evaluated(folded.model), evaluated(model))
    assert "is no layer of torch, so it was taken to be off in eval mode" in folded.notes[-1]
    assert f"{__file__}:{line_of(Net, 'F.dropout')}" in folded.notes[-1]


def test_dropout_that_is_on_in_a_program_from_eval_mode_is_refused(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), AlwaysOn())
    program = exported(model, False)
    with pytest.raises(NotFoldableError, match=r"node `dropout_1` \(aten.dropout.default\) in module `2`"):
        fold_model(program, X)
    report = export_onnx(program, tmp_path / "net.onnx", X)
    assert not report
    assert [check.name for check in report.checks if check.verdict == "fail"] == ["randomness"]
    assert not (tmp_path / "net.onnx").exists()


def test_batchnorm_buffers_of_a_program_are_audited():
    model = trained(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)))
    model[1].running_var[1] = torch.nan
    checks = {check.name: check for check in audit_model(as_module(exported(model, True))).checks}
    assert checks["batchnorm"].note == "`1` running_var has 1 non-finite of 4 values"
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    checks = {check.name: check for check in audit_model(as_module(exported(model, True))).checks}
    assert "`1` has no running statistics" in checks["batchnorm"].note


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_line_takes_a_program(file, tmp_path):
    out = tmp_path / "net.onnx"
    assert run("export", file, out, "--input-shape", "4,1,8,8").exit_code == 0
    assert run("verify", out, "--against", file, "--input-shape", "4,1,8,8").exit_code == 0


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["check-bn", "FILE", "--data", "d.npz"], "a graph without BatchNorm layers"),
        (["recalibrate-bn", "FILE", "--data", "d.npz", "--dry-run"], "a graph without BatchNorm layers"),
        (["export", "FILE", "OUT", "--input-shape", "4,1,8,8", "--weights", "w.pt"], "holds its own weights"),
        (["export", "missing.pt2", "OUT", "--input-shape", "4,1,8,8"], "MODEL missing.pt2: there is no such file"),
    ],
)
def test_what_cannot_be_done_with_a_program_is_said(file, tmp_path, command, message):
    places = {"FILE": file, "OUT": tmp_path / "net.onnx"}
    result = run(*(places.get(part, part) for part in command))
    assert isinstance(result.exception, LoadError)
    assert message in str(result.exception)
