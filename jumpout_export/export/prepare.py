"""The first step of an export: the network to convert, from a model that was audited and folded."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from jumpout_export.errors import ArgumentError, ConversionError, NotFoldableError
from jumpout_export.export.draft import Draft, RefusedError
from jumpout_export.export.golden import Golden, compute_golden
from jumpout_export.export.job import Job
from jumpout_export.export.provenance import provenance
from jumpout_export.fold.network.audit import audit_model
from jumpout_export.fold.network.folded import STATE_PASSED, fold
from jumpout_export.model.axes import Axes, choose_axes
from jumpout_export.model.batches import Batch
from jumpout_export.report import Check
from jumpout_export.text import first_line
from jumpout_export.verify.noise.on_purpose import is_random
from jumpout_export.verify.noise.purpose import no_golden
from jumpout_export.verify.values.loss import Loss


@dataclass(frozen=True)
class Prepared:
    """What is converted, and what the file will be compared with.

    Attributes:
        network: the folded copy, in the precision of the file, on the CPU.
        original: the same with nothing replaced.
        batch: the example in that precision.
        axes: which axes of the inputs are left open.
        loss: how far the precision takes the network from the model.
        golden: data to lie beside the file; None if none is wanted, or it cannot be had.
    """

    network: nn.Module
    original: nn.Module
    batch: Batch
    axes: Axes
    loss: Loss
    golden: Golden | None


def prepare(job: Job) -> Prepared:
    """Audits and folds the model, and brings it to the precision of the file.

    Requires nothing. Ensures that the model is deterministic in eval mode, and says so in the draft.

    Raises:
        RefusedError: if the model fails the audit, has no deterministic eval network, or not as asked.
        ValueError: if an argument does not fit the model.
    """
    draft, subject = job.draft, job.subject
    job.tell("audit", 0)
    audit = audit_model(subject)
    draft.add(audit.checks, audit.notes)
    if draft.failed:
        raise RefusedError("the model failed the audit")
    job.tell("fold", 1)
    try:
        folded = fold(subject, job.batch, allow=job.allow)
    except NotFoldableError as error:
        raise draft.not_foldable(error, subject) from error
    draft.add([STATE_PASSED], folded.notes)
    draft.folded = folded.layers
    draft.metadata = provenance(subject, folded.layers, draft.batchnorm, job.precision)
    network, original = folded.model.cpu(), folded.original.cpu()
    if job.golden_folder and is_random(original, job.batch, job.allow):
        raise ArgumentError("golden", no_golden(job.allow))
    if job.dynamic_batch and (fixed := subject.fixed_batch()):
        raise draft.not_converted(fixed)
    axes = choose_axes(network, job.batch, job.dynamic_batch, job.dynamic_axes)
    try:
        prepared, prepared_original = (job.precision.prepare(model, job.batch) for model in (network, original))
    except ConversionError as error:
        raise draft.not_converted(error) from error
    draft.metadata |= job.precision.metadata()
    batch, loss = job.precision.batch(job.batch), job.precision.loss(original, prepared)
    golden = _golden(draft, prepared_original, prepared, batch, axes) if job.golden_folder else None
    return Prepared(prepared, prepared_original, batch, axes, loss, golden)


def _golden(draft: Draft, original: nn.Module, network: nn.Module, batch: Batch, axes: Axes) -> Golden | None:
    """The golden data; without any, a failed check says why."""
    try:
        return compute_golden(original, network, batch, axes)
    except Exception as error:  # the user's forward may raise anything
        note = f"PyTorch itself cannot run the first images of the example: {first_line(error)}"
        draft.add([Check(name="golden", verdict="fail", note=note)])
        return None
