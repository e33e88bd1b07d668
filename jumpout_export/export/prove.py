"""The third and fourth step of an export: what the file holds, and that it computes what the model does."""

from __future__ import annotations

from jumpout_export.export.job import Job
from jumpout_export.export.prepare import Prepared
from jumpout_export.export.write import Written
from jumpout_export.onnxfile.load import load_onnx
from jumpout_export.report import VerifyReport
from jumpout_export.runtime.loads import inspect_file
from jumpout_export.verify.noise.purpose import Deterministic, purpose_of


def inspect(job: Job, written: Written) -> Deterministic:
    """Inspects the file, and returns what it is meant to be: deterministic, or random on purpose.

    Requires a file that can be read. Ensures that one which is random on purpose says so, in its own metadata too.
    """
    job.tell("inspect", 3)
    file = load_onnx(written.file)
    purpose = purpose_of(file, job.allow)
    purpose.mark(written.file, file)
    job.draft.metadata |= purpose.metadata
    job.draft.add(purpose.excused(inspect_file(written.file, file)), purpose.notes)
    return purpose


def verify(job: Job, prepared: Prepared, written: Written, purpose: Deterministic) -> VerifyReport:
    """Returns the comparison of the file in ONNX Runtime with the model.

    Requires a file that `inspect` has seen. Ensures that nothing but the draft changes.

    Raises:
        ValueError: if golden data is asked for of a file that is random on purpose.
    """
    job.tell("verify", 4)
    if job.golden_folder:
        purpose.refuse_golden()
    result = purpose.verify(
        written.file,
        prepared.original,
        prepared.network,
        job.batches,
        job.providers,
        loss=prepared.loss,
        axes=prepared.axes,
        seed=job.seed,
        progress=job.progress,
    )
    job.draft.add(prepared.loss.checks())
    return result
