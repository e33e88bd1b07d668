"""One channel among many: found where it is off, and rarely where it is not."""

import math

import pytest
import torch
from support.moments import moments_of
from torch import nn

from jumpout_export.batchnorm.check import check_batchnorm
from jumpout_export.batchnorm.judge.channels import ChannelTest, channels_beyond
from jumpout_export.batchnorm.judge.estimate import estimate, stored_noise
from jumpout_export.batchnorm.recalibrate import recalibrate_batchnorm
from jumpout_export.render.writers.document import build_document
from jumpout_export.render.writers.markdown import render_markdown
from jumpout_export.report import BatchNormReport

CHANNELS, FAIL = 512, 0.15


def pictures(count: int = 1024, seed: int = 1, channels: int = CHANNELS) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    offset = torch.randn(count, channels, 1, generator=generator)
    return offset + torch.randn(count, channels, 2, generator=generator)


def healthy(channels: int = CHANNELS) -> nn.Sequential:
    """Agrees with other samples of the same kind than those that it is checked on."""
    model = nn.Sequential(nn.BatchNorm1d(channels))
    recalibrate_batchnorm(model, [pictures(2048, 2, channels)])
    model[0].num_batches_tracked.fill_(1000)
    return model


def check(model: nn.Module, x: torch.Tensor | None = None, **options: object) -> BatchNormReport:
    x = pictures() if x is None else x
    return check_batchnorm(model, list(x.split(64)), **{"outputs": False, "attribution": False} | options)


def off_by_one_deviation(norm: nn.BatchNorm1d) -> None:
    norm.running_mean[37] += norm.running_var[37].sqrt()


def a_variance_of_1e12(norm: nn.BatchNorm1d) -> None:
    norm.running_var[37] = 1e12


def a_variance_100_times_too_small(norm: nn.BatchNorm1d) -> None:
    norm.running_var[37] /= 100


@pytest.mark.parametrize("spoil", [off_by_one_deviation, a_variance_of_1e12, a_variance_100_times_too_small])
@pytest.mark.parametrize("told", [64, None], ids=["batch size known", "guessed"])
def test_one_of_512_channels_makes_the_layer_drift_and_is_named(spoil, told):
    model = healthy()
    spoil(model[0])
    report = check(model, training_batch_size=told, attribution=True)
    layer = report.layers[0]
    assert (report.verdict, report.origin, layer.verdict) == ("drift", "0", "drift")
    assert layer.cause == "stale"
    if spoil is not a_variance_100_times_too_small:
        assert layer.drifting_channels == [37]
        assert layer.note.startswith("Severe drift of single channels: channel 37 of 512 is beyond 0.15 by itself: ")
        assert f"W of the layer is {layer.w:.3f}, the root mean square over all its channels." in layer.note
    else:
        assert layer.w_low > 0.05
        assert "Channel 37 of 512 makes 99% of W squared." in layer.note


def test_w_stays_the_root_mean_square_over_the_channels():
    model = healthy()
    before = check(model, stop_early=False).layers[0]
    off_by_one_deviation(model[0])
    after = check(model, stop_early=False).layers[0]
    assert before.verdict == "ok"
    assert before.drifting_channels == []
    # One channel of 512 has a squared W of about 1 instead of one near 0.
    moved = after.delta[37] ** 2 - before.delta[37] ** 2
    assert moved == pytest.approx(1, abs=0.2)
    assert after.w_measured**2 - before.w_measured**2 == pytest.approx(moved / CHANNELS, rel=1e-9)


def test_several_channels_are_counted_and_named_the_farthest_first():
    model = healthy()
    norm = model[0]
    for channel, factor in ((5, 1e4), (100, 1e12), (7, 1e8)):
        norm.running_var[channel] *= factor
    layer = check(model, warn=0.12, training_batch_size=64).layers[0]
    assert layer.drifting_channels == [100, 7, 5]
    assert "3 of 512 channels (100, 7, 5) are beyond 0.15 by themselves, 100 the farthest: " in layer.note


def test_a_channel_below_the_margin_of_severe_drift_is_no_drift():
    model = healthy()
    model[0].running_mean[37] += 0.12 * model[0].running_var[37].sqrt()
    assert check(model).verdict == "ok"


def test_terminal_page_and_json_name_the_channel():
    model = healthy()
    a_variance_of_1e12(model[0])
    report = check(model)
    assert build_document(report).sentence == (
        "1 of 1 BatchNorm layer drifts, starting at `0`: channel 37 of 512, beyond 0.15 by itself."
    )
    page = render_markdown(report)
    assert "channel 37 of 512 is beyond 0.15 by itself" in page
    assert "beyond severe" in page
    assert '"drifting_channels":[37]' in report.model_dump_json()


def made_test(norm: nn.BatchNorm1d, x: torch.Tensor, held: float = math.inf) -> ChannelTest:
    moments = moments_of(norm, x)
    usable = torch.ones(x.shape[1], dtype=torch.bool)
    return ChannelTest(
        estimate(moments, norm.eps), moments.scale, usable, len(x), held, stored_noise(moments, norm.eps, held)
    )


def test_the_lower_bound_is_that_of_the_closed_form_without_rare_samples():
    """Two values of the same probability: SE(mean) = 1 / sqrt(n), and the variance is known exactly."""
    n = 100_000
    norm = nn.BatchNorm1d(1, eps=0.0).double()
    norm.running_mean.fill_(-1.0)
    x = torch.tensor([-1.0, 1.0], dtype=torch.double).repeat(n // 2)[:, None]
    low = float(made_test(norm, x).low(0.05))
    rare = math.log(4 / 0.05) / n
    assert low == pytest.approx(1 - 2.2414 / math.sqrt(n) - 8 * rare, abs=1e-4)  # 1 - 0.05 / 4 of the normal


def test_holm_tests_all_channels_of_the_model_together():
    """A channel that its layer alone would show is lost among very many healthy ones."""
    torch.manual_seed(0)
    norm, wide = nn.BatchNorm1d(1).double(), nn.BatchNorm1d(100_000).double()
    x = torch.randn(2000, 1, dtype=torch.double) + FAIL + 0.09
    alone = {"a": made_test(norm, x)}
    assert channels_beyond(alone, FAIL, 0.05) == {"a": [0]}
    many = alone | {"b": made_test(wide, torch.randn(64, 100_000, dtype=torch.double))}
    assert channels_beyond(many, FAIL, 0.05) == {"a": [], "b": []}


def test_too_few_samples_show_nothing():
    norm = nn.BatchNorm1d(3).double()
    assert made_test(norm, torch.ones(7, 3, dtype=torch.double) * 9).low(0.05).tolist() == [0, 0, 0]


def sparse(count: int, generator: torch.Generator) -> torch.Tensor:
    """Channels that fire in one of 10 to 10,000 samples, as detectors of rare things do."""
    rate = torch.logspace(-4, -1, 64)
    fires = torch.rand(count, 64, generator=generator) < rate
    return torch.relu(torch.randn(count, 64, generator=generator) + 1) * fires


def normal(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(count, 64, generator=generator)


def heavy(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(count, 64, generator=generator).exp()


def wrong(kind, samples: int, trials: int, *, naive: bool = False) -> int:
    """In how many healthy layers a channel is called drifting; `naive`: from standard errors alone."""
    found = 0
    for trial in range(trials):
        generator = torch.Generator().manual_seed(trial)
        norm = nn.BatchNorm1d(64)
        stored = kind(60 * 64, generator).view(60, 64, 64)
        weight = (0.1 * 0.9 ** torch.arange(59.0, -1, -1))[:, None]  # what 60 batches leave, at momentum .1
        norm.running_mean.copy_((weight * stored.mean(1)).sum(0))
        norm.running_var.copy_((weight * stored.var(1)).sum(0) + 0.9**60)
        test = made_test(norm, kind(samples, generator), 64 * 19)
        if naive:
            score = test.total.log_ratio.abs() / (1e-12 + test.total.log_ratio_se2 * (1 + samples / (64 * 19))).sqrt()
            found += bool((score > 4).any())
        else:
            found += bool(channels_beyond({"bn": test}, FAIL, 0.05)["bn"])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("samples", [512, 4096])
@pytest.mark.parametrize("kind", [normal, sparse, heavy])
def test_healthy_channels_are_rarely_called_drifting(kind, samples):
    trials = 40
    # Nominal 5%, and six standard errors of a count.
    assert wrong(kind, samples, trials) <= 0.05 * trials + 6 * math.sqrt(trials * 0.05 * 0.95)


def test_standard_errors_alone_call_many_of_the_rarely_firing_channels_drifting():
    assert wrong(sparse, 512, 20, naive=True) >= 15
