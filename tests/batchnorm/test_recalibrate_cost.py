"""What a recalibration costs is said before it is paid, and what the cheap one leaves after it."""

import pytest
import torch
from support.recalibrated import network, samples
from torch import nn

from jumpout_export.batchnorm.check import check_batchnorm
from jumpout_export.batchnorm.recalibrate import recalibrate_batchnorm
from jumpout_export.batchnorm.solve import FAR, MANY_LAYERS


def deep(blocks: int = 24) -> nn.Sequential:
    torch.manual_seed(0)
    parts = [nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU()) for _ in range(blocks)]
    return nn.Sequential(*parts)


def rows(count: int = 128) -> torch.Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(1))


def seen_in_serving(model: nn.Sequential, x: torch.Tensor) -> float:
    """The largest W between what a layer stores and what it gets in eval mode, from the inputs themselves."""
    found = []

    def look(norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        got = inputs[0].double()
        tau2 = norm.running_var.double() + norm.eps
        delta2 = (got.mean(0) - norm.running_mean.double()).square() / tau2
        root = ((got.var(0, correction=1) + norm.eps) / tau2).sqrt()
        found.append(float((delta2 + (root - 1).square()).mean().sqrt()))

    hooks = [m.register_forward_pre_hook(look) for m in model.modules() if isinstance(m, nn.BatchNorm1d)]
    with torch.no_grad():
        model.eval()(x)
    for hook in hooks:
        hook.remove()
    return max(found)


def test_small_batches_in_a_deep_network_leave_a_drift_and_the_note_says_so():
    model, x = deep(), rows()
    done = recalibrate_batchnorm(model, list(x.split(8)), "batch")
    assert done.remaining > FAR
    assert abs(done.remaining / seen_in_serving(model, x) - 1) < 1e-4
    assert f"up to W = {done.remaining:.2g} from" in done.note
    assert "take the method exact" in done.note
    assert check_batchnorm(model, list(x.split(8)), outputs=False).verdict != "ok"


def test_large_batches_in_a_network_of_some_layers_come_near_and_nothing_is_said():
    model, x = deep(4), rows(2048)
    done = recalibrate_batchnorm(model, list(x.split(512)), "batch")
    assert 0 < done.remaining < FAR
    assert done.remaining == pytest.approx(seen_in_serving(model, x), rel=1e-3)
    assert done.note == ""


def test_exact_and_variance_have_nothing_left_to_say():
    for method in ("exact", "variance"):
        done = recalibrate_batchnorm(network(), samples().split(32), method)
        assert (done.remaining, done.note) == (0, "")


def said(model: nn.Module, batches: list[torch.Tensor]) -> list[str]:
    texts: list[str] = []
    recalibrate_batchnorm(model, batches, progress=lambda what, done, total: texts.append(what))
    return list(dict.fromkeys(texts))


def test_the_first_pass_names_the_most_and_the_second_about_how_many():
    first, second, *_ = said(deep(5), [rows()])
    assert first == "recalibrating BatchNorm, pass 1 of at most 6"
    assert second == "recalibrating BatchNorm, pass 2 of about 5"


def test_where_the_layers_are_many_the_cheap_method_is_named():
    texts = said(deep(MANY_LAYERS + 1), [rows()])
    assert texts[0] == f"recalibrating BatchNorm, pass 1 of at most {MANY_LAYERS + 2}; method batch takes 2"
    assert not any("method" in text for text in said(deep(MANY_LAYERS), [rows()]))


def test_a_check_which_has_no_method_names_none():
    texts: list[str] = []
    check_batchnorm(deep(MANY_LAYERS + 1), [rows()], progress=lambda what, done, total: texts.append(what))
    assert "recalibrating BatchNorm, pass 1 of at most 10" in texts
