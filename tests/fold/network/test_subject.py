"""What is exported, verified or folded: one object answers for a module, a wrapped one and an exported program."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.export import Dim

from jumpout_export import export_onnx
from jumpout_export.errors import ConversionError, NotFoldableError
from jumpout_export.export.job import Draft
from jumpout_export.export.provenance import provenance
from jumpout_export.fold.network.audit import audit_model
from jumpout_export.fold.network.folded import fold
from jumpout_export.fold.network.subject import Subject, subject_of
from jumpout_export.model.axes import Axes
from jumpout_export.program.network import as_module
from jumpout_export.report import BatchNormLayer, BatchNormReport

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
OPEN, FIXED = Axes((True,), None, ({},)), Axes((True,), 4, ({},))


class FrozenBatchNorm2d(nn.Module):
    """As torchvision's: known by its name and its buffers."""

    def __init__(self, channels):
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x):
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]


class HasModule(nn.Module):
    """The user's own parts are called `module` and `_orig_mod`: they are no wrappers."""

    def __init__(self):
        super().__init__()
        self.bn, self.module, self._orig = nn.BatchNorm1d(6), nn.Sequential(), nn.BatchNorm1d(6)
        self.module.bn = nn.BatchNorm1d(3)
        self.linear = nn.Linear(6, 3)

    def forward(self, x):
        return self.module.bn(self.linear(self.bn(x)))


class Draws(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


def normed():
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.3)).eval()


def program(model, size=Dim.AUTO):
    return torch.export.export(model, (X,), dynamic_shapes=({0: size},))


def report_of(*layers):
    rows = [
        BatchNormLayer(name=name, channels=size, verdict="ok", w=0.0, w_low=0.0, w_high=0.0) for name, size in layers
    ]
    return BatchNormReport(verdict="ok", samples=8, layers=rows)


def test_a_module_is_its_own_subject_and_takes_nothing_for_granted():
    model = normed()
    subject = subject_of(model)
    assert subject_of(subject) is subject
    assert subject.module is model
    assert (subject.layers, subject.notes, subject.can_allow) == ((), (), True)
    assert [path for path, _ in subject.norms()] == ["1"]
    assert subject.channels() == {"1": 5}
    assert subject.fixed_batch() == ""
    assert subject.conditions(OPEN) == []
    subject.refuse_noise()


def test_a_compiled_module_is_taken_without_its_wrapper():
    model = normed()
    assert subject_of(torch.compile(model)).module is model


def test_wrappers_are_no_part_of_a_norms_path():
    subject = subject_of(nn.DataParallel(normed()))
    assert [path for path, _ in subject.norms()] == ["1"]
    assert subject.channels() == {"1": 5}


def test_a_program_says_what_it_was_and_what_it_takes_for_granted():
    subject = subject_of(program(normed().train(), 4))
    assert subject_of(subject) is subject
    assert [(layer.path, layer.action) for layer in subject.layers] == [("2", "identity")]
    assert "in training mode in the program: `1`" in " ".join(subject.notes)
    assert not subject.can_allow
    assert [path for path, _ in subject.norms()] == ["1"]
    assert subject.channels() is None
    assert subject.fixed_batch().startswith("the exported program fixes its batch size at 4")
    with pytest.raises(ConversionError, match="fixes its batch size at 4"):
        subject.conditions(OPEN)
    assert subject.conditions(FIXED) == []


def test_the_module_of_a_program_is_the_same_subject():
    """The command line moves it to a device before anything else sees it."""
    module = as_module(program(normed().train()))
    subject = subject_of(module)
    assert subject.module is module
    assert [layer.path for layer in subject.layers] == ["2"]
    assert subject.fixed_batch() == ""
    assert fold(subject).layers == subject.layers


def test_noise_of_a_program_is_refused_and_cannot_be_allowed():
    subject = subject_of(program(Draws()))
    with pytest.raises(NotFoldableError, match=r"the exported program draws random numbers.*aten\.rand_like") as error:
        subject.refuse_noise()
    for one, hint in ((subject, False), (Subject(normed()), True)):
        draft = Draft(Path("model.onnx"), None)
        draft.not_foldable(NotFoldableError(str(error.value), ("2",)), one)
        assert ("--allow 2" in draft.checks[0].note) is hint


@pytest.mark.parametrize("model", [3, nn.Linear, None], ids=str)
def test_anything_else_is_refused(model):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module or torch\.export\.ExportedProgram, got"):
        subject_of(model)


def test_a_module_without_values_or_without_source_is_refused():
    with pytest.raises(ValueError, match="the model's `weight` has no values"):
        subject_of(nn.Linear(2, 2, device="meta"))
    with pytest.raises(TypeError, match="is a TorchScript module"):
        subject_of(torch.jit.trace(nn.Linear(6, 2), X))


@pytest.mark.parametrize(
    ("norm", "name"),
    [(nn.InstanceNorm2d(4, track_running_stats=True), "InstanceNorm"), (FrozenBatchNorm2d(4), "FrozenBatchNorm2d")],
    ids=["tracked InstanceNorm", "FrozenBatchNorm2d"],
)
def test_a_report_on_any_norm_belongs_to_its_model(norm, name):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), norm)
    assert subject_of(model).channels() == {"1": 4}, name
    assert "ok, largest W" in provenance(model, (), report_of(("1", 4)))["jumpout_export.batchnorm"]
    with pytest.raises(ValueError, match="of another model"):
        provenance(model, (), report_of(("1", 5)))


def test_a_users_part_called_module_keeps_its_name_in_a_report():
    model = HasModule()
    assert subject_of(model).channels() == {"bn": 6, "module.bn": 3, "_orig": 6}
    assert provenance(model, (), report_of(("bn", 6), ("module.bn", 3)))
    with pytest.raises(ValueError, match="of another model"):
        provenance(model, (), report_of(("module.bn", 6)))


def test_statistics_of_every_norm_are_audited():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), FrozenBatchNorm2d(4))
    assert {check.name: check.note for check in audit_model(model).checks}["batchnorm"].startswith("1 BatchNorm layer")
    model[1].running_var[2] = torch.nan
    notes = {check.name: check.note for check in audit_model(model).checks}
    assert notes["batchnorm"] == "`1` running_var has 1 non-finite of 4 values"


@pytest.mark.integration
def test_an_export_with_a_report_on_an_instance_norm_is_published(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4, track_running_stats=True)).eval()
    samples = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    assert export_onnx(model, tmp_path / "model.onnx", samples, batchnorm=report_of(("1", 4)))
