"""Checks that the running statistics stored in a model agree with what its BatchNorm layers see when it is served."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from jumpout_export.batchnorm.before import changes_since
from jumpout_export.batchnorm.data_notes import data_notes, likeness_notes
from jumpout_export.batchnorm.first_batch import first_batch_notes
from jumpout_export.batchnorm.judge.listed import list_some
from jumpout_export.batchnorm.judge.rows import Measured, layer_rows
from jumpout_export.batchnorm.judge.stopping import LEVEL, LabelRuns, Looks
from jumpout_export.batchnorm.judge.verdicts import Judge
from jumpout_export.batchnorm.measure.collect import Collected, collect_states, size_notes
from jumpout_export.batchnorm.measure.distributed import Ranks
from jumpout_export.batchnorm.measure.feed import (
    Feed,
    ForwardFn,
    Step,
    WeighBy,
    batch_count,
    drawn_at_random,
    padding_notes,
)
from jumpout_export.batchnorm.measure.groups import Groups
from jumpout_export.batchnorm.measure.inputs import InputMoments
from jumpout_export.batchnorm.measure.layers import (
    Layer,
    averaged_copy,
    batchnorm_layers,
    label,
    not_measured,
    select_layers,
    unseen,
)
from jumpout_export.batchnorm.measure.states import SERVING
from jumpout_export.batchnorm.outputs import output_effect
from jumpout_export.batchnorm.reference import STATES, Origins, Reference, measure_reference, moving
from jumpout_export.batchnorm.solve import Solution, current, settled, solve_near
from jumpout_export.model.batches import Progress
from jumpout_export.model.guard import put_back
from jumpout_export.report import BatchNormLayer, BatchNormReport, BatchNormVerdict, OutputEffect

# The effect on the outputs is measured on a copy whose layers are this exact, in units of W, or as exact as this many
# passes make it: a network of 50 BatchNorms would take 50.
OUTPUT_TOLERANCE = 1e-3
OUTPUT_PASSES = 10


def check_batchnorm(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    reference: Iterable[Any] | Reference | None = None,
    groups: Groups | None = None,
    samples: int = 4096,
    warn: float = 0.05,
    fail: float = 0.15,
    training_batch_size: int | None = None,
    attribution: bool = True,
    stop_early: bool = True,
    forward_fn: ForwardFn | None = None,
    device: torch.device | str | None = None,
    outputs: bool = True,
    weigh_by: WeighBy = "samples",
    before: nn.Module | None = None,
    process_group: dist.ProcessGroup | Literal["world"] | None = None,
    progress: Progress | None = None,
) -> BatchNormReport:
    """Returns how far the stored BatchNorm statistics of `model` are from what serving sees, with error bars, and why.

    For the verdict the model runs as it is served: dropout and jumpout off, BatchNorm with running statistics. For the
    cause every batch runs twice more: with batch statistics, and as in training. The model is left exactly as it was
    found: flags, buffers, hooks, generator states, also after an exception.

    Args:
        model: a model with BatchNorm layers, in any mode.
        batches: a list or DataLoader of batches (tensor, tuple, list, dict, named tuple or data class; integers that
            `forward` has no parameter for are labels). Of about the size of those of training, and shuffled.
        reference: batches of the samples that it was trained on, without augmentation that serving lacks: what these
            and `batches` differ in is told apart from a stale average as the cause `data`, and the other causes are
            measured on these. The verdict stays that on `batches`. None: only `batches` are known.
        groups: which samples belong together and are not independent, as frames of one clip or crops of one scene: an
            entry of every batch by its name, or its place in a tuple, or a function of the batch, with one value for
            each sample. All error bars are those of groups then, which may come in any order; fewer than eight decide
            nothing. The entry is never an input or a label. None: every sample is independent of the others, but for
            those that are found to be alike.
        samples: a pass ends with the batch that reaches this many samples.
        warn: margin in units of W: a layer is `ok` if its W is shown to be below, `drift` if shown to be above.
            0.05 is 10% of the variance.
        fail: margin from which the drift is called severe, at least `warn`.
        training_batch_size: samples that one call of a BatchNorm saw in training, which says how noisy the stored
            averages are: the micro-batch under gradient accumulation, that of one process under DDP, and with
            SyncBatchNorm those of all processes together. None: about that of `batches`, at least 32, and drift has
            to stand out three times from that noise.
        attribution: also measure why: what is stale, stochastic and propagated. False takes a third of the time. Where
            a layer drifts and fewer than 32 batches ran as in training, they run so again, with other noise.
        stop_early: end at 512, 1024, 2048 ... samples if every layer is decided; the intervals are wide enough then to
            keep the error rate at 5% over all looks. In a drift only where the loader draws its samples at random
            (`shuffle=True`): the first of others may be unlike the rest.
        forward_fn: `forward_fn(model, batch)` replaces the call; it gets the batch as the loader yields it.
        device: where batches go; None: where the model's first parameter is.
        outputs: also measure what recalibration would change at the outputs, which takes further passes: a batch
            pass, at most ten that make the copy exact, and one with two forwards.
        weigh_by: what samples of different sizes weigh: `samples`, all the same, as in a moving average over batches of
            one size each; `pixels`, as many as a layer sees of them, as in one batch of all pixels.
        before: an earlier model, such as that before quantisation-aware training, or one of those that were averaged:
            notes name, per layer, another eps, momentum or dropout rate, statistics that were not averaged with the
            weights, and negative variances.
        process_group: processes of torch.distributed that share the samples (`"world"`: all): every one of them calls
            this with the same model and its own part of the batches, and gets the same report. None of them stops
            early.
        progress: called as `progress(what, samples done, samples in all or None)`.

    Returns:
        The report, truthy exactly when every layer is `ok`. Its notes say what else stands out: random numbers or
        statistics of the batch in eval mode (with module and source line), parts that cannot be observed.

    Raises:
        ValueError: if the model has no BatchNorm, `batches` is empty or a one-shot iterator, or a margin, `samples` or
            `training_batch_size` is out of range.
        TypeError: if `batches` or a batch is of the wrong type.

    Example:
        >>> report = check_batchnorm(model, loader)
        >>> report.verdict, report.origin
    """
    if not 0 < warn <= fail:
        raise ValueError(f"margins must satisfy 0 < warn <= fail, got warn={warn:g}, fail={fail:g}")
    if training_batch_size is not None and training_batch_size < 1:
        raise ValueError(f"training_batch_size must be at least 1, got {training_batch_size}; pass None if unknown")
    ranks = Ranks(process_group)
    with ranks.together():
        layers = batchnorm_layers(model)
        how: dict[str, Any] = {"forward_fn": forward_fn, "device": device, "progress": progress, "weigh_by": weigh_by}
        how["groups"] = groups
        feed = Feed(model, batches, samples=samples, ranks=ranks, **how)
    with ranks.buffers_as_served(model) as taken, put_back(model):
        ranks.require_same_statistics(layers)
        known = None
        if reference is not None:
            known = _known(
                reference, layers, partial(Feed, model, samples=samples, ranks=ranks, **how), training_batch_size
            )
        watch = _Watch(
            layers,
            Judge(warn, fail, training_batch_size),
            Looks(samples, early=stop_early and ranks.size == 1),
            batches,
            grouped=feed.grouped,
        )
        states = STATES if attribution and known is None else [SERVING]
        seen = collect_states(
            feed, layers, states, "checking BatchNorm", renormalised=moving(layers), enough=watch.enough
        )
        alike = ranks.gather((seen[0].likeness.sorted, 1.0 if feed.grouped else seen[0].likeness.group_size()))
        repeats = max(size for _, size in alike)
        watch.judge = replace(watch.judge, repeats=repeats)
        if watch.stopped:
            feed = feed.alone(seen[0].samples)
        origins = Origins.of(feed, layers, seen, training_batch_size) if known is None else known.origins
        measured = Measured(
            seen[0],
            origins.renormalised,
            origins.training,
            None if known is None else known.origins.serving,
            level=watch.level,
        )
        rows, first = layer_rows(layers, measured, watch.judge)
        if first is not None and origins.training is not None:
            origins.look_closer()
            rows, first = layer_rows(layers, replace(measured, advice=origins.advice), watch.judge)
        list_some(rows)
        report = BatchNormReport(
            verdict=_overall(rows, all_told=not seen[0].own_code),
            origin=first,
            samples=seen[0].samples,
            groups=max((one.units for one in seen[0].moments.values()), default=0) if feed.grouped else 0,
            reference_samples=0 if known is None else known.samples,
            warn=warn,
            fail=fail,
            stopped_early=watch.stopped,
            ranks=ranks.size,
            layers=rows,
            not_observed=[layer.name for layer in layers if layer.name not in seen[0].moments],
        )
        if taken:
            report.notes.append(
                "The buffers differed between ranks, as DistributedDataParallel leaves them after a step; those of "
                "rank 0 were checked, which it takes at the start of its next forward."
            )
        report.notes += data_notes(report, watch.inputs.mean_and_deviation(ranks), known)
        report.notes += origins.notes + _not_compared(report, seen[0]) + size_notes(seen[0], weigh_by)
        by_class, by_looks = any(ranks.gather(watch.labels.sorted)), any(in_order for in_order, _ in alike)
        report.notes += _notes(report, samples, sorted_by_class=by_class)
        report.notes += likeness_notes(seen[0].samples, repeats, in_order=by_looks and not by_class)
        report.notes += [] if before is None else changes_since(model, layers, before)
        report.notes += unseen(model) + averaged_copy(model) + first_batch_notes(feed, layers) + padding_notes(batches)
        if outputs:
            report.outputs, note = _outputs(feed, layers, seen[0])
            report.notes += note
    # What was seen of one's own batches alone, such as where random numbers are drawn, is that of the first process.
    return ranks.gather(report if ranks.rank == 0 else None)[0]


class _Watch:
    """Follows the pass: whether it may end, and whether the batches are fit for it."""

    def __init__(
        self, layers: list[Layer], judge: Judge, looks: Looks, batches: Iterable[Any], *, grouped: bool
    ) -> None:
        self._layers, self._looks = layers, looks
        self._batches = batch_count(batches)
        self._grouped = grouped
        self._random = grouped or drawn_at_random(batches)
        self.judge, self.labels, self.inputs = judge, LabelRuns(), InputMoments()
        self.stopped = False
        self.level = LEVEL

    def enough(self, step: Step, seen: list[Collected]) -> bool:
        """Takes one more batch and returns whether every layer is decided."""
        self.labels.add(step.labels)
        self.inputs.add(step.first_input)
        if self._batches is not None and seen[0].batches == 1:
            self._looks.end_at(self._batches * seen[0].samples)
        level = self._looks.due(seen[0].samples)
        self.level = self._looks.last
        # The first samples of a sorted loader say nothing about the others.
        if level is not None and not self.labels.sorted and not seen[0].likeness.sorted:
            repeats = 1.0 if self._grouped else seen[0].likeness.group_size()
            self.judge = replace(self.judge, repeats=repeats)
            verdict = self.judge.together(self._layers, seen[0], level)
            if verdict == "ok" or (verdict == "drift" and self._random):
                self.stopped, self.level = True, level
        return self.stopped


def _known(
    reference: Iterable[Any] | Reference,
    layers: list[Layer],
    feed: Callable[[Iterable[Any]], Feed],
    trained: int | None,
) -> Reference:
    """Returns the reference as it was measured, here or by an earlier check."""
    if not isinstance(reference, Reference):
        return measure_reference(feed, reference, layers, trained)
    reference.require_model(layers)
    return reference


def _overall(rows: list[BatchNormLayer], *, all_told: bool) -> BatchNormVerdict:
    verdicts = {row.verdict for row in rows}
    if "drift" in verdicts:
        return "drift"
    # Nothing measured is nothing shown, and a layer that runs but could not be measured may be anything.
    return "ok" if verdicts == {"ok"} and all_told else "inconclusive"


def _not_compared(report: BatchNormReport, seen: Collected) -> list[str]:
    reasons = not_measured(report.not_observed, seen.own_code)
    return [f"{reason[0].upper()}{reason[1:]}; what they store was not compared with anything." for reason in reasons]


def _notes(report: BatchNormReport, asked: int, *, sorted_by_class: bool) -> list[str]:
    notes = []
    if sorted_by_class:
        notes.append(
            f"The labels of the {report.samples} samples come in runs or are all the same: a loader sorted by class "
            "shows samples that are not like the others, in batches that are not like those of training; shuffle it."
        )
    if report.stopped_early:
        notes.append(f"Stopped after {report.samples} of {asked} samples: every layer was decided.")
    elif report.samples < asked:
        notes.append(f"Only {report.samples} of {asked} samples were there; pass more for narrower error bars.")
    if report.origin is not None:
        drifting = [row for row in report.layers if row.verdict == "drift"]
        notes.append(
            f"{len(drifting)} of {len(report.layers)} BatchNorm layers drift; the origin is {label(report.origin)}."
        )
    undecided = [row for row in report.layers if row.verdict == "inconclusive"]
    if report.verdict == "inconclusive" and undecided:
        notes.append(f"{len(undecided)} of {len(report.layers)} BatchNorm layers are undecided.")
    return notes


def _outputs(feed: Feed, layers: list[Layer], seen: Collected) -> tuple[OutputEffect | None, list[str]]:
    if not seen.moments:
        return None, []
    try:
        chosen = select_layers(layers, None)
        solution = solve_near(feed, chosen, OUTPUT_TOLERANCE, OUTPUT_PASSES)
        if settled(seen, chosen, OUTPUT_TOLERANCE):  # a copy would differ by its own inexactness alone
            solution = Solution([current(new.layer) for new in solution.corrected], solution.passes)
        effect = output_effect(feed, solution)
    except (ValueError, TypeError) as error:
        # The statistics are reported all the same: this is the part of the answer that could not be had, and why.
        return None, [f"The effect on the outputs was not measured: {error}."]
    if solution.remaining <= OUTPUT_TOLERANCE:
        return effect, []
    note = (
        f"The effect on the outputs is that of a copy which after {solution.passes} passes still was "
        f"W = {solution.remaining:.3f} from exact."
    )
    return effect, [note]
