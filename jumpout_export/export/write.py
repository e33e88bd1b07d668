"""The second step of an export: the file, in a hidden folder beside its place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jumpout_export.disk import private_folder, writing
from jumpout_export.errors import ConversionError
from jumpout_export.export.convert import convert
from jumpout_export.export.job import Job
from jumpout_export.export.prepare import Prepared
from jumpout_export.export.provenance import with_tolerance
from jumpout_export.report import Check


@dataclass(frozen=True)
class Written:
    """The file as it was converted.

    Attributes:
        file: under the name of the target.
        data: the file beside it that its weights lie in, or None.
    """

    file: Path
    data: Path | None


@contextlib.contextmanager
def beside(target: Path) -> Iterator[Path]:
    """Yields a hidden folder in the target's own, so that the last step is a rename; it is gone at the end.

    Raises:
        ValueError: if it cannot be made.
    """
    with contextlib.ExitStack() as stack:
        with writing(target):
            folder = stack.enter_context(private_folder(target))
        yield folder


def write(job: Job, prepared: Prepared, folder: Path) -> Written:
    """Converts the network.

    Requires a folder in the file system of the target. Ensures that the file is as asked and valid, with the metadata
    of the draft.

    Raises:
        RefusedError: if the network cannot be converted as asked.
        ValueError: if the file cannot be written.
    """
    draft, file = job.draft, folder / job.target.name
    job.tell("convert", 2)
    try:
        conditions = job.subject.conditions(prepared.axes)
        with writing(job.target):
            converted = convert(
                prepared.network,
                prepared.batch,
                file,
                opset=job.opset,
                axes=prepared.axes,
                external_data=job.external_data,
                keep_debug_info=job.keep_debug_info,
                metadata=with_tolerance(draft.metadata, prepared.golden.tolerance if prepared.golden else {}),
            )
    except ConversionError as error:
        raise draft.not_converted(error) from error
    draft.opset = converted.opset
    said = (*converted.said, *conditions, *converted.restrictions)
    draft.add(
        [Check(name="convert", verdict="pass", note=f"opset {converted.opset}")],
        [f"the converter says: {line}" for line in said],
    )
    return Written(file, converted.data)
