"""What an export is asked for: what every step of it reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from jumpout_export.export.draft import Draft
from jumpout_export.fold.network.subject import Subject
from jumpout_export.model.batches import Batch, Progress
from jumpout_export.verify.precision import Precision

_STEPS = 5


@dataclass(frozen=True, kw_only=True)
class Job:
    """The arguments of `export_onnx`, checked.

    A step takes the job and what earlier steps returned, and returns what it made; what it found goes to the draft. It
    raises `RefusedError` where there is nothing for the next step to do, with the reason in the draft.

    Attributes:
        subject: what is exported.
        batch: the example, on the CPU.
        batches: to verify on; read once.
        target: the file to write.
        golden_folder: for golden data, if any is wanted.
        providers: to verify on.
        precision: to export in.
        opset: to write, or None for the converter's own.
        dynamic_batch: whether the batch size is left open.
        dynamic_axes: further open axes.
        external_data: whether weights go to a second file; by size if None.
        allow: modules that may draw random numbers in eval mode.
        keep_debug_info: whether source lines stay in the file.
        seed: of random inputs.
        progress: called as progress(what, done, total).
        draft: of the report.
    """

    subject: Subject
    batch: Batch
    batches: Iterable[Batch]
    target: Path
    golden_folder: Path | None
    providers: tuple[str, ...]
    precision: Precision
    opset: int | None
    dynamic_batch: bool
    dynamic_axes: Mapping[str, Mapping[int, str]] | None
    external_data: bool | None
    allow: tuple[str, ...]
    keep_debug_info: bool
    seed: int
    progress: Progress | None
    draft: Draft

    def tell(self, step: str, done: int) -> None:
        """Says which step begins, of how many."""
        if self.progress is not None:
            self.progress(f"export: {step}", done, _STEPS)
