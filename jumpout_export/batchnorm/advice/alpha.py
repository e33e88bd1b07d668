"""What a jumpout or dropout layer does to the variance a BatchNorm is trained on, and the exponent that would keep it.

A unit x becomes y = s z x with keep rate k = 1 - p', scale s = k^-alpha and a mask z ~ Bernoulli(k) of its own (Wang,
Zhou, Bilmes, ICML 2019; plain dropout is alpha = 1). A linear layer makes sum_i w_i y_i of it, and u = sum_i w_i x_i of
x itself. Given p',

    mean ratio       E[sum w y] / E[u]       = k^(1 - alpha)
    variance ratio   Var(sum w y) / Var(u)   = k^(2 - 2 alpha) (1 + (p' / k) rho),    rho = sum w^2 E[x^2] / Var(u)

For one unit that goes straight into a BatchNorm, with mean c and variance v, rho = (c^2 + v) / v and the same law reads
k^(1 - 2 alpha) (c^2 + v) - k^(2 - 2 alpha) c^2. Expectations over p' are means over equally likely rates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from jumpout_export.batchnorm.advice.noise_path import NoisePath
from jumpout_export.batchnorm.advice.scale_paths import noise_paths
from jumpout_export.batchnorm.measure.feed import Feed
from jumpout_export.batchnorm.measure.layers import Layer, label
from jumpout_export.nn.functional import check_settings
from jumpout_export.nn.modules import Jumpout
from jumpout_export.report import AlphaAdvice

# Equal slices of probability that stand for a sampled rate: the expectations are then right to 2e-4.
SLICES = 1024
# Halvings of a bracket for alpha that is rarely wider than ten.
HALVINGS = 50
# Variances that differ by less than 1% are called the same.
SAME = 0.01
# What measured and predicted ln(P / T) may differ by: 10% of the variance, which is the check's margin of W = 0.05, and
# a quarter of the prediction, because over some dozens of calls a sampled rate scatters that much.
DISAGREEMENT, SCATTER = 0.1, 0.25


def advise(feed: Feed, layers: Sequence[Layer], samples: int = 512) -> dict[str, AlphaAdvice]:
    """Returns, by BatchNorm name, what the noise before it does to its variance and the alpha that would keep it.

    Only BatchNorms that read a Jumpout or nn.Dropout layer directly or through one linear layer are there;
    `noise_paths` says what counts. Noise further upstream is not in the law. The prediction is of ln(P / T) as the
    check measures it: pooled over many batches, eps added to both variances. The model is left as it was found, after
    one pass that ends with the batch that reaches `samples`.

    Raises:
        ValueError: if `samples` is not positive.
    """
    paths = noise_paths(feed, layers, samples)
    found = {layer.name: _advice(paths[layer.name], layer.eps) for layer in layers if layer.name in paths}
    return {name: advice for name, advice in found.items() if advice is not None}


def advice_sentence(advice: AlphaAdvice, measured_stochastic: float | None = None) -> str:
    """Says in one sentence what the layer does to the variance and which alpha would have kept it.

    The measured ln(P / T) of the median channel is None or NaN where it was not measured.
    """
    noise = f"The noise of {label(advice.path)} (alpha {advice.alpha:.2f})"
    trained = "the variance this layer is trained on"
    predicted = math.expm1(-advice.predicted)
    if measured_stochastic is None or math.isnan(measured_stochastic):
        return f"{noise} should {_verb(predicted)} {trained}{_size(predicted)}{_cure(advice, 'would keep it')}."
    measured = math.expm1(-measured_stochastic)
    if abs(measured_stochastic - advice.predicted) > DISAGREEMENT + SCATTER * abs(advice.predicted):
        return (
            f"{noise} should {_verb(predicted)} {trained}{_size(predicted)}, but it is measured to "
            f"{_verb(measured)} it{_size(measured)}: something else, such as noise further upstream, plays a part"
            f"{_cure(advice, 'would have kept its own part')}."
        )
    by = f"{_size(measured)} (predicted {predicted:+.0%})"
    return f"{noise} {_verb(measured)}s {trained}{by}{_cure(advice, 'would have kept it')}."


def variance_ratio(rates: Tensor, alpha: float, rho: Tensor, squared_mean: Tensor | float = 0.0) -> Tensor:
    """Returns Var(T) / Var(P) = E[k^(2 - 2 alpha) (1 + (p' / k) rho)] + Var[k^(1 - alpha)] E[u]^2 / Var(u), (C,).

    The first term is the mean over the calls of the variance within each, which is what a BatchNorm averages into its
    running variance. The second appears where calls with different p' are pooled, as in the state T, because their
    means are apart; with a rate per sample it appears within each call.

    Args:
        rates: (R,) equally likely p', in [0, 1).
        alpha: the exponent of the scale.
        rho: (C,) sum_i w_i^2 E[x_i^2] / Var(u).
        squared_mean: (C,) E[u]^2 / Var(u), without the linear layer's bias; 0 for the variance within a call.
    """
    keep = 1 - rates
    power = keep ** (2 - 2 * alpha)
    within = power.mean() + (power * rates / keep).mean() * rho
    return within + (power.mean() - mean_ratio(rates, alpha) ** 2).clamp_min(0) * squared_mean


def mean_ratio(rates: Tensor, alpha: float) -> Tensor:
    """Returns E[k^(1 - alpha)], (), the factor on the mean of every unit and of what linear layers make of them."""
    return ((1 - rates) ** (1 - alpha)).mean()


def exact_alpha(rates: Tensor, rho: Tensor) -> Tensor:
    """Returns the alpha with E[k^(2 - 2 alpha) (1 + (p' / k) rho)] = 1, (C,): it keeps the variance within a call.

    For one rate it is 1 - ln(1 + p' rho / k) / (2 |ln k|), never above 1; for several it is found by bisection between
    the smallest and the largest of these. It is negative where rho is so large that the mask alone adds too much.

    Args:
        rates: (R,) equally likely p', in [0, 1), at least one above 0.
        rho: (C,) finite.

    Raises:
        ValueError: if all rates are 0, since every alpha then keeps the variance.
    """
    rates = rates[rates > 0]
    if not len(rates):
        raise ValueError("rates must hold at least one rate above 0, got only zeros: every alpha keeps the variance")
    log_keep, log_gain = torch.log1p(-rates), torch.log1p(rates / (1 - rates) * rho[:, None])
    each = 1 + log_gain / (2 * log_keep)
    low, high = each.amin(dim=1), each.amax(dim=1)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        # The ratio grows with alpha in every rate; rates of 0 keep it at 1.
        above = ((2 - 2 * middle)[:, None] * log_keep + log_gain).exp().mean(dim=1) > 1
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2


def sampled_rates(module: nn.Module, active: Tensor) -> Tensor:
    """Returns equally likely p' of a Jumpout or nn.Dropout layer, (R,) float64: midpoints of slices of its law.

    Args:
        module: the layer.
        active: (A,) equally likely fractions of active units q by which the rate is divided; p' is 0 where q is.
    """
    if not isinstance(module, Jumpout):
        return torch.tensor([module.p], dtype=torch.float64)
    rate, sigma, p_min, p_max, _, cap, _, truncation, _ = check_settings(
        module.sigma,
        module.p_min,
        module.p_max,
        module.p,
        module.normalize,
        module.alpha,
        module.rate_cap,
        module.truncation,
        module.relu,
    )
    if rate is not None:
        drawn = torch.tensor([rate], dtype=torch.float64)
    else:
        u = (torch.arange(SLICES, dtype=torch.float64) + 0.5) / SLICES
        noise = -sigma * torch.special.ndtri((1 - u) / 2)
        drawn = noise.clamp(p_min, p_max) if truncation == "clip" else (p_min + noise).clamp(max=p_max)
    rates = torch.where(active > 0, drawn[:, None] / active, 0.0).clamp(max=cap).flatten()
    # Every q has its own rates; neighbours among all of them are averaged, so that their number stays.
    return rates.sort().values.view(len(drawn), -1).mean(dim=1) if rate is None else rates


def _advice(path: NoisePath, eps: float) -> AlphaAdvice | None:
    """The advice for one BatchNorm; None where no rate was drawn or no channel varies."""
    rates = sampled_rates(path.module, torch.cat(path.active))
    alpha = float(path.module.alpha) if isinstance(path.module, Jumpout) else 1.0
    varies = torch.isfinite(path.rho)
    if not varies.any() or rates.max() == 0 or rates.max() >= 1:
        return None
    rho, squared_mean, variance = path.rho[varies], path.squared_mean[varies], path.variance[varies]
    training = variance_ratio(rates, alpha, rho, squared_mean) * variance
    return AlphaAdvice(
        path=path.path,
        alpha=alpha,
        rho=float(rho.median()),
        # It falls as rho grows, so the median channel's is the median.
        alpha_star=float(exact_alpha(rates, rho.median()[None])),
        predicted=float(((variance + eps) / (training + eps)).log().median()),
    )


def _verb(change: float) -> str:
    if abs(change) < SAME:
        return "keep"
    return "inflate" if change > 0 else "shrink"


def _size(change: float) -> str:
    return "" if abs(change) < SAME else f" by {abs(change):.0%}"


def _cure(advice: AlphaAdvice, effect: str) -> str:
    if abs(math.expm1(-advice.predicted)) < SAME:
        return ""
    if advice.alpha_star < 0:
        return f"; no alpha {effect}: lower its rate, or move it behind the BatchNorm"
    star = f"{advice.alpha_star:.2f}"
    # Plain dropout has no alpha, and a layer that drops whole channels has no counterpart with one.
    scale = f" (a scale of k^-{star}, as Jumpout has, instead of 1 / k, k the keep rate)" if advice.alpha == 1 else ""
    return f"; alpha = {star}{scale} {effect}"
