"""The steps of an export, one by one: what each leaves in the draft, and that a refused one leaves nothing on disk."""

import pytest
import torch
from support.onnx_files import saved
from torch import nn

from jumpout_export.disk import private_folder
from jumpout_export.errors import ConversionError
from jumpout_export.export import publish
from jumpout_export.export.job import Draft, Job, RefusedError
from jumpout_export.export.publish import export_onnx
from jumpout_export.export.steps import Written, inspect, prepare, replace, verify, write
from jumpout_export.fold.network.subject import subject_of
from jumpout_export.model.batches import Batch
from jumpout_export.onnxfile.load import load_onnx
from jumpout_export.onnxfile.manifest import manifest_of
from jumpout_export.onnxfile.metadata import entries
from jumpout_export.report import Check, ProviderReport, VerifyReport
from jumpout_export.runtime.saved import SavedFile
from jumpout_export.verify.noise.purpose import Deterministic
from jumpout_export.verify.precision import precision_of

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Dropout(0.2), nn.Linear(5, 2)).eval()


class Draws(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


class Eigenvalues(nn.Module):
    """An operator without a translation to ONNX."""

    def forward(self, x):
        return torch.linalg.eigvals(x[:3].T @ x[:3]).real


def broken():
    model = network()
    model[0].weight.data[0, 0] = torch.nan
    return model


@pytest.fixture
def job(tmp_path):
    def made(model, **changed):
        batch = Batch((X,), {})
        settings = {
            "subject": subject_of(model),
            "batch": batch,
            "batches": iter([batch]),
            "target": tmp_path / "model.onnx",
            "golden_folder": None,
            "entry": None,
            "providers": ("cpu",),
            "precision": precision_of(changed.pop("dtype", None)),
            "opset": None,
            "dynamic_batch": True,
            "dynamic_axes": None,
            "external_data": None,
            "allow": (),
            "save_weights": None,
            "require_batchnorm": False,
            "allow_constant": (),
            "made_up": True,
            "thorough": False,
            "keep_debug_info": False,
            "seed": 0,
            "progress": None,
            "draft": Draft(tmp_path / "model.onnx", None),
        }
        return Job(**{**settings, **changed})

    return made


def failed(draft):
    return [check.name for check in draft.checks if check.verdict != "pass"]


def test_prepare_gives_the_folded_network_and_what_it_is_compared_with(job):
    said = []
    made = job(network(), progress=lambda what, done, total: said.append((what, done, total)))
    prepared = prepare(made)
    assert [type(layer).__name__ for layer in prepared.network] == ["Linear", "ReLU", "Identity", "Linear"]
    assert [type(layer).__name__ for layer in prepared.original] == ["Linear", "ReLU", "Dropout", "Linear"]
    assert (prepared.axes.size, prepared.golden, prepared.loss.checks()) == (None, None, [])
    assert [check.name for check in made.draft.checks] == ["parameters", "batchnorm", "state"]
    assert made.draft.metadata["jumpout_export.folded"] == "2: Dropout(p=0.2, inplace=False) -> identity"
    assert said == [("export: audit", 0, 5), ("export: fold", 1, 5)]


def test_prepare_brings_everything_to_the_precision(job):
    prepared = prepare(job(network(), dtype=torch.float16))
    assert {model[0].weight.dtype for model in (prepared.network, prepared.original)} == {torch.float16}
    assert prepared.batch.args[0].dtype == torch.float16
    assert prepared.loss.inputs(Batch((X,), {})).args[0].dtype == torch.float16


@pytest.mark.parametrize(
    ("model", "name", "reason"),
    [
        (broken, "parameters", "the model failed the audit"),
        (Draws, "randomness", "the model has no deterministic eval network"),
    ],
    ids=["audit", "fold"],
)
def test_a_refused_preparation_says_which_check_failed_and_why_nothing_was_compared(job, tmp_path, model, name, reason):
    made = job(model())
    with pytest.raises(RefusedError, match=reason):
        prepare(made)
    assert failed(made.draft) == [name]
    report = export_onnx(model(), tmp_path / "model.onnx", X)
    assert not report
    assert [check.name for check in report.checks if check.verdict == "fail"] == [name]
    assert (report.providers["cpu"].verdict, report.providers["cpu"].reason) == ("not_run", reason)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.integration
def test_what_cannot_be_converted_is_refused_and_the_folder_is_gone(job, tmp_path):
    made = job(Eigenvalues())
    with pytest.raises(RefusedError, match="the model was not converted"), private_folder(made.target) as folder:
        write(made, prepare(made), folder)
    assert failed(made.draft) == ["convert"]
    assert made.draft.opset == 0
    assert list(tmp_path.iterdir()) == []


def test_a_subject_that_fixes_an_open_axis_is_refused_before_the_converter_runs(job, tmp_path, monkeypatch):
    made = job(network())
    prepared = prepare(made)

    def conditions(_axes):
        raise ConversionError("only for four samples")

    monkeypatch.setattr(made.subject, "conditions", conditions)
    with pytest.raises(RefusedError):
        write(made, prepared, tmp_path)
    assert made.draft.checks[-1].note == "only for four samples"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.integration
def test_the_steps_make_a_file_that_appears_only_with_the_last_one(job, tmp_path):
    said = []
    made = job(network(), progress=lambda what, *_: said.append(what))
    prepared = prepare(made)
    with private_folder(made.target) as folder:
        written = write(made, prepared, folder)
        assert (written.saved.path.parent, written.data) == (folder, None)
        before = written.saved.path.read_bytes()
        purpose = inspect(made, written)
        assert type(purpose) is Deterministic
        assert (written.saved.path.read_bytes(), purpose.notes, purpose.metadata) == (before, [], {})
        result = verify(made, prepared, written, purpose)
        assert result
        assert not made.target.exists()
        report = replace(made, prepared, written, result)
    assert report
    assert made.target.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [manifest_of(made.target), made.target]
    assert [text for text in said if text.startswith("export: ")] == [
        *("export: audit", "export: fold", "export: convert", "export: inspect", "export: verify", "export: done")
    ]


def test_a_failed_comparison_leaves_an_older_file_as_it_was(job, tmp_path):
    made = job(network())
    made.target.write_bytes(b"older")
    new = tmp_path / "new.onnx"
    new.write_bytes(b"new")
    report = replace(made, prepare(made), Written(SavedFile(new), None, recorded=False), VerifyReport(passed=False))
    assert not report
    assert report.sha256 == ""
    assert made.target.read_bytes() == b"older"


def test_a_file_that_breaks_beyond_the_given_inputs_says_so(job, tmp_path):
    made = job(network())
    new = saved("g (float x) => (float y) { y = Neg (x) }", tmp_path / "new.onnx")
    warning = Check(name="magnitudes", verdict="warning", note="at 100 times the given inputs ...")
    good = {"cpu": ProviderReport(verdict="pass")}
    report = replace(
        made,
        prepare(made),
        Written(SavedFile(new), None, recorded=False),
        VerifyReport(passed=True, providers=good, checks=[warning]),
    )
    assert report
    assert entries(load_onnx(made.target))["jumpout_export.magnitudes"] == warning.note
    assert report.provenance["jumpout_export.magnitudes"] == warning.note


def test_an_export_is_its_sentence():
    """Its steps in the order of the docs, and nothing else that works."""
    source = publish.export_onnx.__code__.co_names
    steps = [name for name in source if name in ("prepare", "write", "inspect", "verify", "replace")]
    assert steps == ["prepare", "write", "inspect", "verify", "replace"]
