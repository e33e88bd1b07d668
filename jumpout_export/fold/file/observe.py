"""Watches the noise of a file while it runs, to see that it is the dropout that the graph was read as."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jumpout_export.fold.file.copies import observed
from jumpout_export.fold.file.factors import Keep, rounding
from jumpout_export.report import Check, counted
from jumpout_export.tolerances import DROPOUT_ROUNDINGS

if TYPE_CHECKING:
    import onnx_ir as ir

    from jumpout_export.fold.file.noise import NoiseSite

Array = np.ndarray[Any, Any]
# A right file is called wrong with this probability, per site.
_CHANCE = 2e-9


def observe(runs: list[dict[str, Any]], sites: list[NoiseSite]) -> Check:
    """Returns whether each site of the main graph makes 0 or x times the scale of x, and 0 as often as its mask says.

    The runs are what a copy made by `observed_copy` gave, several times on the same inputs.
    """
    problems, values = [], 0
    for site in sites:
        names = observed(site)
        shown = [{value: outputs[name] for value, name in names.items() if name in outputs} for outputs in runs]
        watched = [held for held in shown if site.x in held and site.y in held]
        values += sum(held[site.x].size for held in watched)
        problem = _problem(site, watched)
        if problem:
            problems.append(f"{site.where} {problem}")
    good = f"{values} values, each 0 or x times the scale, as often as the mask says"
    return counted("proof/noise observed", problems, good)


@dataclass
class _Count:
    """How many values were dropped, and the mean and variance of that number if the mask is right."""

    dropped: float = 0.0
    expected: float = 0.0
    variance: float = 0.0
    total: float = 0.0
    heaviest: float = 0.0

    def add(self, dropped: Array, alive: Array, keep: Array, shape: tuple[int, ...]) -> None:
        """Takes in one run; `shape` is that of the random numbers, one for each decision."""
        weight, gone, chance = _summed(alive, shape), _summed(dropped, shape), _summed(alive * (1 - keep), shape)
        self.dropped += float(gone.sum())
        self.expected += float(chance.sum())
        with np.errstate(all="ignore"):
            rate = np.where(weight > 0, chance / weight, 0.0)
        self.variance += float((weight**2 * rate * (1 - rate)).sum())
        self.total += float(weight.sum())
        self.heaviest = max(self.heaviest, float(weight.max(initial=0.0)))

    def problem(self) -> str:
        """Bernstein's inequality: independent decisions, of different weight, few of them perhaps."""
        nats = math.log(2 / _CHANCE)
        third = self.heaviest * nats / 3
        if abs(self.dropped - self.expected) <= third + math.sqrt(third**2 + 2 * self.variance * nats):
            return ""
        rate, expected = self.dropped / self.total, self.expected / self.total
        return f"drops {rate:.3g} of the values, where its mask says {expected:.3g}"


def _problem(site: NoiseSite, runs: list[dict[ir.Value, Array]]) -> str:
    """What the site does that is no dropout, empty if it does nothing else."""
    producer, count = site.y.producer(), _Count()
    eps = rounding(producer) if producer is not None else 0.0
    for shown in runs:
        x, y = shown[site.x].astype(np.float64), shown[site.y].astype(np.float64)
        if x.shape != y.shape:
            return f"makes {list(y.shape)} of {list(x.shape)}"
        alive = (x != 0) & np.isfinite(x)
        keep, scale = _keep_and_scale(site, shown, x, y)
        with np.errstate(all="ignore"):
            off = np.abs(y - x * scale) > DROPOUT_ROUNDINGS * eps * np.abs(x * scale)
        if bool((off & (y != 0) & alive).any()):
            return "makes something else of x than 0 or x times the scale"
        shape = _decisions(site, shown)
        if shape is not None and _fits(shape, x.shape):
            count.add((y == 0) & alive, alive, np.broadcast_to(keep, x.shape), shape)
    return count.problem()


def _keep_and_scale(site: NoiseSite, shown: dict[ir.Value, Array], x: Array, y: Array) -> tuple[Any, Any]:
    if site.factor is None:  # a Dropout node; its definition ties the two together
        kept = (y != 0) & (x != 0) & np.isfinite(x)
        scale = float(np.median(y[kept] / x[kept])) if kept.any() else 1.0
        return 1 / max(scale, 1.0), scale
    keep = math.prod(_probability(mask.keep, shown) for mask in site.factor.masks)
    powers = (_probability(base, shown) ** exponent for base, exponent in site.factor.powers.items())
    return keep, math.prod(powers, start=site.factor.number)


def _decisions(site: NoiseSite, shown: dict[ir.Value, Array]) -> tuple[int, ...] | None:
    """The shape of the random numbers; None where several masks decide, or a Bernoulli node.

    ONNX Runtime 1.31 runs Bernoulli by ONNX's function body, which gives a one with probability 1 - p, where the
    operator's text (and onnx.reference) says p.
    """
    if site.factor is None:
        return tuple(shown[site.x].shape)
    if len(site.factor.masks) > 1 or any(mask.source.op_type == "Bernoulli" for mask in site.factor.masks):
        return None
    (mask,) = site.factor.masks
    drawn = shown.get(mask.source.outputs[0])
    return None if drawn is None else tuple(drawn.shape)


def _probability(keep: Keep, shown: dict[ir.Value, Array]) -> Any:
    if isinstance(keep.base, float):
        return keep.base
    base = shown[keep.base].astype(np.float64)
    return 1 - base if keep.complement else base


def _fits(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    return len(shape) <= len(whole) and all(
        one in (1, other) for one, other in zip(shape[::-1], whole[::-1], strict=False)
    )


def _summed(values: Array, shape: tuple[int, ...]) -> Array:
    """Sums over all that one decision is broadcast to."""
    aligned = (1,) * (values.ndim - len(shape)) + shape
    return values.sum(axis=tuple(axis for axis, size in enumerate(aligned) if size == 1), keepdims=True)
