"""Replaces stored BatchNorm statistics by those that serving sees, all or nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import nn

from jumpout_export.batchnorm.measure.distributed import Ranks
from jumpout_export.batchnorm.measure.feed import Feed, ForwardFn, WeighBy
from jumpout_export.batchnorm.measure.layers import batchnorm_layers, not_measured, select_layers
from jumpout_export.batchnorm.measure.states import RENORMALISED, SERVING
from jumpout_export.batchnorm.outputs import output_effect, require_labels, worsening
from jumpout_export.batchnorm.solve import Corrected, current, look_again, solve_batch, solve_exact
from jumpout_export.errors import RecalibrationRefusedError
from jumpout_export.model.batches import Progress
from jumpout_export.model.guard import put_back
from jumpout_export.report import OutputEffect

Method = Literal["exact", "batch", "variance"]


@dataclass(frozen=True)
class Recalibration:
    """What was done, and the way back: calling it restores the statistics from before, bitwise.

    Attributes:
        layers: names of the layers whose statistics were replaced, in call order.
        passes: passes over the data that it took.
        outputs: what it changed at the outputs, or None where that was not asked for or could not be measured.
        note: why it could not be measured, and what serving still finds, in sentences for a person; or nothing.
        remaining: the largest W of a layer in serving after `batch`, as the second look saw it; 0 after `exact`, and
            after `variance`, which leaves the means alone.
    """

    layers: list[str]
    passes: int
    outputs: OutputEffect | None
    note: str
    remaining: float
    _before: list[Corrected] = field(repr=False)

    def undo(self) -> None:
        """Puts back the statistics from before."""
        for old in self._before:
            old.put()

    __call__ = undo


def recalibrate_batchnorm(
    model: nn.Module,
    batches: Iterable[Any],
    method: Method = "exact",
    *,
    samples: int | None = None,
    layers: Iterable[str] | None = None,
    forward_fn: ForwardFn | None = None,
    device: torch.device | str | None = None,
    outputs: bool = False,
    refuse_if_worse: bool = False,
    weigh_by: WeighBy = "samples",
    process_group: dist.ProcessGroup | Literal["world"] | None = None,
    progress: Progress | None = None,
) -> Recalibration:
    """Replaces the running statistics of `model` in place; calling what it returns restores them bitwise.

    Only `running_mean` and `running_var` change, and only once everything is known: after any exception, Ctrl-C
    included, the model is bitwise what it was. Dropout and jumpout are off throughout. The variance is the unbiased
    v n / (n - 1) with n = samples x pixels, as training stores it. Before anything is written, a second look shows that
    the layers see what is stored: in serving for `exact` (W below 1e-6), with batch statistics for the others (W below
    0.01; for `variance` in the variance). It costs one pass; `exact` often ends with such a pass anyway. After `batch`
    it measures serving, too: where a layer is beyond the check's margin of 0.05 there, `note` says so.

    Args:
        model: a model with BatchNorm layers, in any mode; flags are left as they are.
        batches: a list or DataLoader of batches (tensor, tuple, list or dict), gone through about once per depth of
            BatchNorm in the network.
        method: `exact`: the statistics every layer sees when all are in use, independent of order and batch size (to
            rounding). `batch`: one pass in which the layers normalise by batch statistics, the usual recipe; near it
            where batches are large, and not where they are small and the network is deep.
            `variance`: the same pass, but only `running_var` is replaced (Hendrycks & Gimpel 2016).
        samples: a pass ends with the batch that reaches this many samples; None for all, which an endless loader never
            gives.
        layers: names of the layers to change; None for all that are not frozen. Layers that the forward does not
            reach are left alone.
        forward_fn: `forward_fn(model, batch)` replaces the call; it gets the batch as the loader yields it.
        device: where batches go; None: where the model's first parameter is.
        outputs: also measure what this changes at the outputs, in one more pass with two forwards.
        refuse_if_worse: measure it, and write nothing if it makes the outputs significantly worse on these batches:
            if the negative log likelihood rises by more than its paired error bar (one-sided, 5% level) or accuracy
            falls with McNemar's p below 0.05. The batches need labels.
        weigh_by: what samples of different sizes weigh: `samples`, all the same, as in a moving average over batches of
            one size each; `pixels`, as many as a layer sees of them, as in one batch of all pixels.
        process_group: processes of torch.distributed that share the samples (`"world"`: all): every one of them calls
            this with the same model and its own part of the batches, and ends with the same statistics.
        progress: called as `progress(what, samples done, samples in all or None)`.

    Returns:
        A `Recalibration`, say `undo`: `undo()` puts back the statistics from before; `undo.passes`, `undo.layers` and
        `undo.outputs` say what was done.

    Raises:
        ValueError: if there is nothing to change, the method or a layer's name is unknown, a named layer is not
            reached or stores no statistics, `batches` is empty or a one-shot iterator, the data make a layer's
            statistics NaN or infinite, the second look finds other statistics, or `refuse_if_worse` finds no labels.
        NotVerifiableError: if another process of `process_group` failed or ended; nothing is written.
        RecalibrationRefusedError: if `refuse_if_worse` is set and the outputs would get worse; nothing is written.
        TypeError: if `batches` or a batch is of the wrong type.

    Example:
        >>> undo = recalibrate_batchnorm(model, loader)
        >>> undo()
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(map(repr, get_args(Method)))}, got {method!r}")
    wanted = list(layers) if layers is not None and not isinstance(layers, str) else layers
    ranks = Ranks(process_group)
    with ranks.together():
        found = batchnorm_layers(model)
        chosen = select_layers(found, wanted)
        how: dict[str, Any] = {"forward_fn": forward_fn, "device": device, "progress": progress, "weigh_by": weigh_by}
        feed = Feed(model, batches, samples=samples, ranks=ranks, **how)
    with ranks.buffers_as_served(model), put_back(model):
        ranks.require_same_statistics(found)
        if refuse_if_worse:
            require_labels(feed)
        solution = solve_exact(feed, chosen) if method == "exact" else solve_batch(feed, chosen)
        reached = {new.layer.name for new in solution.corrected}
        missed = [layer.name for layer in chosen if layer.name not in reached]
        if wanted is not None and missed:
            raise ValueError(f"{'; '.join(not_measured(missed, solution.own_code))}; nothing was written")
        if method == "variance":
            kept = [Corrected(new.layer, current(new.layer).mean, new.var) for new in solution.corrected]
            solution = replace(solution, corrected=kept)
        solution = look_again(
            feed, solution, SERVING if method == "exact" else RENORMALISED, variance_only=method == "variance"
        )
        effect, note = None, ""
        if outputs or refuse_if_worse:
            try:
                effect = output_effect(feed, solution)
            except (ValueError, TypeError) as error:
                if refuse_if_worse:
                    raise
                note = f"The effect on the outputs was not measured: {error}."
        if refuse_if_worse and effect is not None and (worse := worsening(effect)):
            raise RecalibrationRefusedError(
                f"recalibrating makes the outputs worse on {effect.labelled} samples: {worse}; nothing was written; "
                "the stored statistics happened to suit the outputs, so train with less noise before BatchNorm, or "
                "recalibrate without refuse_if_worse"
            )
    note = " ".join(filter(None, [note, solution.note]))
    before = [current(new.layer) for new in solution.corrected]
    names = [old.layer.name for old in before]
    done = Recalibration(names, solution.passes, effect, note, solution.remaining, before)
    try:
        for new in solution.corrected:
            new.put()
        ranks.require_same_statistics([old.layer for old in before])
    except BaseException:
        done.undo()
        raise
    return done
