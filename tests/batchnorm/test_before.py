"""What is named of a model that was made from an earlier one, and what is not where nothing is wrong."""

import copy
import warnings

import pytest
import torch
from torch import nn

from jumpout_export import check_batchnorm
from jumpout_export.batchnorm.before import changes_since
from jumpout_export.batchnorm.measure.layers import batchnorm_layers


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.2), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5))


def trained(model, steps=3, seed=1):
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD(model.train().parameters(), 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    return model.eval()


def since(model, before):
    return changes_since(model, batchnorm_layers(model), before)


def test_nothing_is_named_of_a_model_that_was_trained_on():
    before = trained(network())
    assert since(trained(copy.deepcopy(before)), before) == []
    assert since(copy.deepcopy(before), before) == []
    assert since(torch.compile(copy.deepcopy(before)), before) == []


def test_settings_and_rates_are_named_per_layer():
    before = trained(network())
    model = copy.deepcopy(before)
    model[1].eps, model[4].momentum, model[2].p = 1e-3, 0.01, 0.5
    eps, momentum, rate = since(model, before)
    assert eps.startswith("eps of BatchNorm `1` is 0.001, before it was 1e-05")
    assert momentum.startswith("momentum of BatchNorm `4` is 0.01, before it was 0.1")
    assert rate.startswith("`2` is Dropout(p=0.5, inplace=False), before it was Dropout(p=0.2, inplace=False)")
    model[2] = nn.Identity()
    assert "`2` was Dropout(p=0.2, inplace=False) and is none now" in since(model, before)[2]


@pytest.mark.parametrize("use_buffers", [False, True])
def test_an_average_without_its_statistics_is_named(use_buffers):
    before = trained(network())
    average = torch.optim.swa_utils.AveragedModel(before, use_buffers=use_buffers)
    last = trained(copy.deepcopy(before), seed=2)
    average.update_parameters(before)
    average.update_parameters(last)
    found = since(average.module.eval(), last)
    assert len(found) == (not use_buffers)
    assert all("statistics of BatchNorm `1`, `4` are bit for bit those" in text for text in found)


def test_negative_variances_of_a_merge_are_counted():
    before, other = trained(network()), trained(network(), seed=5)
    model = copy.deepcopy(before)
    with torch.no_grad():
        for own, one, two in zip(model.buffers(), before.buffers(), other.buffers(), strict=True):
            own.copy_(3 * one - 20 * two if own.is_floating_point() else one)
    bad = int((model[1].running_var < 0).sum())
    assert bad
    assert f"running_var of BatchNorm `1` is negative in {bad} of 4 channels" in " ".join(since(model, before))


def test_layers_that_quantisation_aware_training_renamed_belong_together_by_their_order():
    before = trained(network())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is deprecated in favour of torchao, which is no dependency
        from torch.ao import quantization

        model = copy.deepcopy(before).train()
        model = quantization.fuse_modules_qat(model, [["0", "1"], ["3", "4"]])
        model.qconfig = quantization.get_default_qat_qconfig("x86")
        model = quantization.prepare_qat(model)
    names = [layer.name for layer in batchnorm_layers(model)]
    assert names != ["1", "4"]
    assert since(trained(model, steps=2), before) == []
    dict(model.named_modules())[names[0]].eps = 0.1
    (text,) = since(model, before)
    assert text.startswith(f"eps of BatchNorm `{names[0]}` is 0.1")


def test_the_check_says_it_in_its_notes_and_refuses_what_is_no_model():
    before = trained(network())
    model = copy.deepcopy(before)
    model[1].eps = 1e-3
    batches = [torch.randn(8, 3, 8, 8) for _ in range(4)]
    report = check_batchnorm(model, batches, outputs=False, attribution=False, before=before)
    assert any(note.startswith("eps of BatchNorm `1`") for note in report.notes)
    with pytest.raises(TypeError, match=r"before must be a torch\.nn\.Module, got str"):
        check_batchnorm(model, batches, before="model.pt")


def test_a_layer_that_was_added_is_named():
    before = trained(network())
    model = nn.Sequential(*before, nn.BatchNorm2d(5))
    assert since(model, before) == ["The earlier model has no BatchNorm like `5`."]
    assert since(before, model) == ["The earlier model's `5` have no BatchNorm of their size here."]
