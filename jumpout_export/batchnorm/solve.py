"""Works out the statistics a model should store, without leaving a trace in the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jumpout_export.batchnorm.measure.collect import Collected, collect, collect_states
from jumpout_export.batchnorm.measure.feed import Feed
from jumpout_export.batchnorm.measure.layers import Layer, not_measured
from jumpout_export.batchnorm.measure.levels import depth_levels
from jumpout_export.batchnorm.measure.states import RENORMALISED, SERVING, State, preserved

# A layer whose W (in units of tau) would change by no more than this is left as settled; float32 buffers resolve 6e-8.
TOLERANCE = 1e-7
# What a corrected layer may seem to be off by when it is measured again, or at the end of iterating one that feeds on
# its own output, and how often the layers are gone through for that.
HELD_TOLERANCE = 1e-6
SWEEPS = 20
# With more layers than this the passes are said to be many, and what takes fewer.
MANY_LAYERS = 10
# What serving may find after a batch pass before it is said: the check's margin.
FAR = 0.05
# What a second pass with batch statistics may find a layer off by.
REPEATED_TOLERANCE = 0.01


@dataclass(frozen=True)
class Corrected:
    """New statistics of one layer, (C,) each, in the dtype and on the device of its buffers."""

    layer: Layer
    mean: Tensor
    var: Tensor

    def put(self) -> None:
        """Writes them into the layer's buffers."""
        mean, var = self.layer.statistics()
        with torch.no_grad():
            mean.copy_(self.mean)
            var.copy_(self.var)


@dataclass(frozen=True)
class Solution:
    """The corrected layers in call order, each one that the forward reached."""

    corrected: list[Corrected]  # their statistics
    passes: int  # passes over the data that it took
    remaining: float = 0.0  # the largest W that serving still was seen to find, 0 where all layers are settled
    samples: int = 0  # samples in one pass, where that is asked for
    own_code: frozenset[str] = frozenset()  # names of layers that normalise by code that cannot be followed
    shown: bool = False  # whether the last pass measured every layer with these statistics in use

    @property
    def note(self) -> str:
        """What serving will still find, in a sentence for a person, or nothing."""
        if self.remaining <= FAR:
            return ""
        return (
            f"In serving the layers are up to W = {self.remaining:.2g} from what a pass with batch statistics stored: "
            "its batches are too small for a network this deep; pass larger ones, or take the method exact."
        )


def settled(seen: Collected, layers: Sequence[Layer], tolerance: float) -> bool:
    """Whether no layer that was seen would change by more than `tolerance`, in units of W."""
    return all(_off_by(seen, layer) <= tolerance for layer in layers if layer.name in seen.moments)


def current(layer: Layer) -> Corrected:
    """Returns a copy of what the layer stores now."""
    mean, var = layer.statistics()
    return Corrected(layer, mean.clone(), var.clone())


def solve_exact(feed: Feed, layers: Sequence[Layer], tolerance: float = TOLERANCE, most: int | None = None) -> Solution:
    """Returns the statistics that equal what every layer sees when all of them are in use.

    What a layer sees depends only on the BatchNorms upstream of it. So every pass measures all layers in the serving
    state and corrects the first that are off, those of one depth together: as many passes as there are depths, one
    more where the last depth holds several layers, fewer where layers are settled already. Correcting all layers on
    every pass would also end there, but by way of W = 1e17 in a network of 20 layers.

    A layer is settled if its W would change by no more than `tolerance`. After `most` passes it ends, settled or not.

    Raises:
        ValueError: if a layer's input holds NaN or infinity, its statistics do not fit its dtype, no layer was
            reached, or the layers do not settle: one feeds on itself, or the passes are not alike.
    """
    with preserved(feed.model):
        batch = "; method batch takes 2" if most is None and len(layers) > MANY_LAYERS else ""
        what = "recalibrating BatchNorm, pass {} of {}" + batch
        seen = collect(feed, layers, SERVING, what.format(1, f"at most {most or len(layers) + 1}"))
        order = _reached(seen, layers)
        unknown = frozenset(seen.own_code)
        looped = [layer for layer in order if seen.moments[layer.name].calls > 1]
        groups: list[list[Layer]] = []
        corrected: set[str] = set()
        passes = sweeps = 1
        start = 0
        while True:
            moved = {layer.name: _off_by(seen, layer) for layer in order}
            off = [layer for layer in order if moved[layer.name] > _limit(layer, tolerance, corrected)]
            if not off:
                return Solution([current(layer) for layer in order], passes, own_code=unknown, shown=True)
            # Nothing comes after the last call: once its layer alone is off, no further pass has to show the result.
            last = off == order[-1:] and not looped
            if passes == most and not last:
                remaining = max(moved[layer.name] for layer in off)
                return Solution([current(layer) for layer in order], passes, remaining, own_code=unknown)
            groups = groups or depth_levels(feed, order)
            at, wrapped = _next_group(groups, off, start)
            sweeps += wrapped
            if sweeps > SWEEPS:
                raise ValueError(_unsettled(looped, off, max(moved.values()), passes))
            for layer in groups[at]:
                _corrected(seen, layer).put()
                corrected.add(layer.name)
            if last:
                return Solution([current(layer) for layer in order], passes, own_code=unknown)
            start, passes = at + 1, passes + 1
            seen = collect(feed, order, SERVING, what.format(passes, f"about {min(len(groups), most or len(groups))}"))


def solve_near(feed: Feed, layers: Sequence[Layer], tolerance: float, most: int) -> Solution:
    """Returns what `solve_exact` does, to a loose tolerance and in at most `most` passes after a batch pass.

    The batch pass comes so close that many layers are settled from the start and the others are nearly right.

    Raises:
        ValueError: as `solve_exact`.
    """
    with preserved(feed.model):
        try:
            start = solve_batch(feed, layers)
        except ValueError:
            # Batches of one value per channel cannot be normalised by themselves; the passes then start from what is
            # stored, and raise again whatever else was wrong.
            start = Solution([], 0)
        for new in start.corrected:
            new.put()
        found = solve_exact(feed, layers, tolerance, most)
    return replace(found, passes=start.passes + found.passes)


def solve_batch(feed: Feed, layers: Sequence[Layer]) -> Solution:
    """Returns mean and variance over one pass in which the layers normalise by batch statistics, dropout off.

    Raises:
        ValueError: if a layer's input holds NaN or infinity, a batch holds one value per channel, the statistics do
            not fit their dtype, or no layer was reached.
    """
    seen = collect(feed, layers, RENORMALISED, "recalibrating BatchNorm")
    corrected = [_corrected(seen, layer) for layer in _reached(seen, layers)]
    return Solution(corrected, 1, samples=seen.samples, own_code=frozenset(seen.own_code))


def look_again(feed: Feed, solution: Solution, state: State, *, variance_only: bool = False) -> Solution:
    """Returns the solution once one more pass in `state` has shown that its layers see what they now store.

    In the serving state that is exact: W below 1e-6, or two roundings of the buffers. With batch statistics, where a
    model may draw numbers that nobody can repeat, W has to be below a fifth of the warning margin; the same pass
    measures what serving finds, which small batches and many layers take far from it (`remaining`). It costs nothing
    where the last pass of the solution has shown it already.

    Raises:
        ValueError: if a layer does not; two layers may share their buffers, the model may overwrite them, or see other
            things on every pass.
    """
    if solution.shown:
        return solution
    with preserved(feed.model):
        for new in solution.corrected:
            new.put()
        layers = [new.layer for new in solution.corrected]
        states = [state] if state == SERVING or variance_only else [state, SERVING]
        seen, *served = collect_states(feed, layers, states, "looking again")
        names = {layer.name for layer in layers}
        for layer in layers:
            off = _off_by(seen, layer, variance_only=variance_only)
            if off > (_limit(layer, TOLERANCE, names) if state == SERVING else REPEATED_TOLERANCE):
                raise ValueError(
                    f"once recalibrated, BatchNorm {layer.label} should see what it stores, but a second look finds it "
                    f"W = {off:.2g} from that; its buffers may be another layer's, too, or be written by the model "
                    "itself; nothing was written"
                )
        remaining = max((_off_by(one, layer) for one in served if not one.failure for layer in layers), default=0.0)
    return replace(solution, passes=solution.passes + 1, remaining=remaining, shown=True)


def _reached(seen: Collected, layers: Sequence[Layer]) -> list[Layer]:
    """The layers that the forward reached, in call order."""
    by_name = {layer.name: layer for layer in layers}
    found = [by_name[name] for name in seen.moments]
    if not found:
        reasons = not_measured([layer.name for layer in layers], seen.own_code)
        raise ValueError(f"there is nothing to recalibrate: {'; '.join(reasons)}")
    return found


def _corrected(seen: Collected, layer: Layer) -> Corrected:
    moments = seen.moments.get(layer.name)
    if moments is None:
        raise ValueError(
            f"the forward pass reached BatchNorm {layer.label} before, but not once the layers before it were "
            "corrected; nothing was written"
        )
    if not moments.finite:
        raise ValueError(
            f"the input of BatchNorm {layer.label} holds NaN or infinity, so its statistics cannot be computed; look "
            "at the data, at the layers before it, and at BatchNorms before it that are not being recalibrated; "
            "nothing was written"
        )
    try:
        mean, var = moments.mean_and_variance()
    except ValueError as error:
        raise ValueError(f"BatchNorm {layer.label}: {error}") from error
    old_mean, old_var = layer.statistics()
    new = Corrected(layer, mean.to(old_mean), var.to(old_var))
    if not (torch.isfinite(new.mean).all() and torch.isfinite(new.var).all()):
        raise ValueError(
            f"BatchNorm {layer.label} sees a mean or variance too large for its {old_var.dtype} buffers; "
            "convert its buffers to float32 first"
        )
    return new


def _limit(layer: Layer, tolerance: float, corrected: set[str]) -> float:
    """What a layer may be off by; one that was corrected is only measured again, so two roundings are let pass."""
    if layer.name not in corrected:
        return tolerance
    return max(tolerance, HELD_TOLERANCE, 2 * torch.finfo(layer.statistics()[1].dtype).eps)


def _next_group(groups: list[list[Layer]], off: list[Layer], start: int) -> tuple[int, bool]:
    """The first group from `start` on with a layer that is off, and whether the search began again at the front."""
    names = {layer.name for layer in off}
    found = [index for index, group in enumerate(groups) if any(layer.name in names for layer in group)]
    later = [index for index in found if index >= start]
    return (later or found)[0], not later


def _unsettled(looped: list[Layer], off: list[Layer], moved: float, passes: int) -> str:
    moves = f"still move by W = {moved:.1e} after {passes} passes"
    if looped:
        return (
            f"BatchNorm {looped[0].label} is called several times in one forward and feeds on its own output; its "
            f"statistics {moves}; give each call a BatchNorm of its own, or use method='batch'"
        )
    return (
        f"what BatchNorm {off[0].label} sees differs from pass to pass, so its statistics {moves}; make model and "
        "batches repeat themselves, or use method='batch'"
    )


def _off_by(seen: Collected, layer: Layer, *, variance_only: bool = False) -> float:
    old = current(layer)
    try:
        new = _corrected(seen, layer)
        return _distance(old, replace(new, mean=old.mean) if variance_only else new)
    except ValueError:
        return math.inf  # a layer before it may be the reason; if not, it is raised when it is this layer's turn


def _distance(old: Corrected, new: Corrected) -> float:
    """The RMS over channels of W between two sets of stored statistics, in units of the old tau."""
    eps = old.layer.eps
    unusable = old.layer.unusable_channels()
    old_var, new_var = old.var.double() + eps, new.var.double() + eps
    delta = (new.mean.double() - old.mean.double()).square() / old_var
    w2 = delta + ((new_var / old_var).sqrt() - 1).square()
    return float(torch.where(unusable, math.inf, w2).mean().sqrt())
