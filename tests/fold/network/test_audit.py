"""What the audit of flags, parameters and BatchNorm buffers finds, and what it says."""

import pytest
import torch
from torch import nn

from jumpout_export.export.provenance import provenance
from jumpout_export.fold.network.audit import audit_model
from jumpout_export.report import BatchNormLayer, BatchNormReport


def healthy():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Sequential(nn.BatchNorm2d(4)))
    model(torch.randn(8, 1, 8, 8))
    return model.eval()


def failing(model):
    return {check.name: check for check in audit_model(model).checks if check.verdict != "pass"}


def test_a_healthy_eval_model_passes_without_a_note():
    audit = audit_model(healthy())
    assert [(check.name, check.measured, check.verdict) for check in audit.checks] == [
        ("parameters", 0, "pass"),
        ("batchnorm", 0, "pass"),
    ]
    assert audit.notes == ()


def test_train_mode_is_noted_by_its_outermost_modules():
    assert audit_model(healthy().train()).notes == ("the model was in train mode; its eval network was taken",)
    model = healthy()
    model[1].train()
    model[3].train()
    assert audit_model(model).notes == ("in train mode: `1`; `3`; the eval network was taken",)
    model = healthy()
    model.training = True
    assert audit_model(model).notes == ("in train mode: the root module's own flag; the eval network was taken",)


@pytest.mark.parametrize(
    ("damage", "note"),
    [
        (lambda bn: bn.running_var.fill_(torch.nan), "`1` running_var has 4 non-finite of 4 values"),
        (lambda bn: bn.running_mean[1:2].fill_(torch.inf), "`1` running_mean has 1 non-finite of 4 values"),
        (lambda bn: bn.running_var[2:].fill_(-1.0), "`1` running_var + eps is not positive in 2 of 4 channels"),
    ],
    ids=["nan variance", "infinite mean", "negative variance"],
)
def test_unusable_statistics_fail_and_are_named(damage, note):
    model = healthy()
    damage(model[1])
    assert failing(model).keys() == {"batchnorm"}
    assert failing(model)["batchnorm"].note == note


def test_batchnorm_without_running_statistics_fails():
    model = nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False))
    assert "`0` has no running statistics, so its output depends on the batch" in failing(model)["batchnorm"].note


def test_a_parameter_that_is_not_finite_fails():
    model = healthy()
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = torch.nan
    assert failing(model).keys() == {"parameters"}
    assert failing(model)["parameters"].note == "parameter `0.weight` has 1 non-finite of 36 values"


def test_batchnorm_that_was_never_trained_is_a_note_not_a_failure():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3)).eval()
    assert failing(model) == {}
    assert audit_model(model).notes == (
        "never trained, still the initial statistics (mean 0, variance 1): BatchNorm `0`; `1`",
    )
    model[0].running_mean += 1  # loaded from elsewhere
    assert audit_model(model).notes[0].endswith("BatchNorm `1`")


def test_a_lazy_layer_without_parameters_is_named():
    with pytest.raises(ValueError, match=r"parameter `0.weight` belongs to a lazy layer that has not seen data"):
        audit_model(nn.Sequential(nn.LazyLinear(3)))


def report_of(*layers):
    return BatchNormReport(
        verdict="ok",
        samples=8,
        layers=[
            BatchNormLayer(name=name, channels=channels, verdict="ok", w=0.0, w_low=0.0, w_high=0.0)
            for name, channels in layers
        ],
    )


def test_a_batchnorm_report_of_another_model_is_refused():
    model = healthy()
    for layers in ([("1", 4), ("3.0", 4)], [("module.1", 4)], [("_orig_mod.3.0", 4)], [("1", 0)], []):
        assert "ok, largest W" in provenance(model, (), report_of(*layers))["jumpout_export.batchnorm"]
    for wrong, has in ((("bn", 4), "`bn` (4 channels)"), (("1", 5), "`1` (5 channels)")):
        with pytest.raises(ValueError, match="the BatchNorm report is of another model") as error:
            provenance(model, (), report_of(("3.0", 4), wrong))
        assert f"it has layers `3.0` (4 channels); {has}; the model has `1` (4 channels); `3.0`" in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_finite_weights_whose_sum_overflows_are_finite(dtype):
    model = nn.Sequential(nn.Linear(4, 4, dtype=dtype))
    with torch.no_grad():
        model[0].weight.fill_(torch.finfo(dtype).max)
    assert "parameters" not in failing(model)
    model[0].weight.data[1, 2] = torch.nan
    assert failing(model)["parameters"].note == "parameter `0.weight` has 1 non-finite of 16 values"
