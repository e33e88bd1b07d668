"""What an export is asked for, what is known of it so far, and the report it becomes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from jumpout_export.errors import NotFoldableError
from jumpout_export.fold.network.subject import Subject
from jumpout_export.log import log_step
from jumpout_export.model.batches import Batch, Progress
from jumpout_export.model.signature import first_and_all
from jumpout_export.onnxfile.data import describe_data, sha256_of
from jumpout_export.quantized.settings import Quantized
from jumpout_export.quantized.verdict import LOOKED_AT
from jumpout_export.report import BatchNormReport, Check, ExportReport, FoldedLayer, VerifyReport, passes
from jumpout_export.verify.precision import Precision

_STEPS = 5


class RefusedError(Exception):
    """There is nothing for the next step to do; it says why nothing was compared, and the draft what was found."""


@dataclass
class Draft:
    """Collects checks, notes and facts while a model is exported, under their names in `ExportReport`.

    The file to write is `target`, its metadata so far is the report's provenance.
    """

    target: Path
    batchnorm: BatchNormReport | None
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    folded: tuple[FoldedLayer, ...] = ()
    opset: int = 0
    metadata: dict[str, str] = field(default_factory=dict)
    said: tuple[str, ...] = ()  # warnings of the converter: of a file that passed they explain nothing

    @property
    def failed(self) -> bool:
        """Whether a check failed."""
        return any(check.verdict == "fail" for check in self.checks)

    def add(self, checks: Iterable[Check], notes: Iterable[str] = ()) -> None:
        """Adds checks and notes."""
        self.checks += checks
        self.notes += notes

    def not_foldable(self, error: NotFoldableError, subject: Subject) -> RefusedError:
        """Adds the failed check of a model without a deterministic eval network, and how to allow its noise."""
        note = str(error)
        if error.check == "randomness" and error.modules and subject.can_allow:
            note += ". Noise of torch that is wanted in the served file (Monte-Carlo dropout) is allowed by module:"
            note += "".join(f" --allow {path or repr('')}" for path in error.modules)
        self.add([Check(name=error.check, verdict="fail", note=note)])
        return RefusedError("the model has no deterministic eval network")

    def not_converted(self, why: object) -> RefusedError:
        """Adds the failed check of a network that cannot be converted as asked."""
        self.add([Check(name="convert", verdict="fail", note=str(why))])
        return RefusedError("the model was not converted")

    def report(self, result: VerifyReport, file: Path | None = None, data: Path | None = None) -> ExportReport:
        """Returns the report; passed only if the comparison in `result` and every check did.

        The finished file, and the one its weights lie in, are published if the report passed.
        """
        self.add(result.checks, result.notes)
        passed = bool(result) and passes(self.checks, result.providers)
        # Of a file that is not published nobody needs a hash: it would be taken for that of an older one.
        data_files = {data.name: data.stat().st_size} if passed and data else {}
        self.notes += [] if passed else [f"the converter says: {line}" for line in self.said]
        self.notes += [f"ship both files, {self.target.name} and {describe_data(data_files)}"] * bool(data_files)
        return ExportReport(
            passed=passed,
            providers=result.providers,
            first_divergence=result.first_divergence,
            checks=self.checks,
            path=str(self.target),
            sha256=sha256_of(file) if passed and file else "",
            data_files=data_files,
            data_sha256={data.name: sha256_of(data)} if passed and data else {},
            quantization=result.quantization,
            notes=self.notes,
            folded=list(self.folded),
            opset=self.opset,
            batchnorm=self.batchnorm,
            provenance=self.metadata,
        )


@dataclass(frozen=True)
class Quantize:
    """How a file is quantized, and on what it is judged."""

    kind: str  # `int8`
    calibration: Iterator[Batch]  # that ranges are taken from; read once
    judged_on: Iterator[Batch]  # that its outputs are compared on; read once
    limits: Quantized


def quantize_of(
    kind: str, calibration: Any, limits: Quantized | None, batches: Iterator[Batch], model: nn.Module
) -> tuple[Quantize, list[Batch]]:
    """Returns what a quantized export needs, and the batches that its float file is verified on, the first four.

    Raises:
        ValueError: if there is no calibration data.
        TypeError: if it is no batches.
    """
    few = list(itertools.islice(batches, LOOKED_AT))
    ranges = first_and_all(calibration, model, "quantize_calibration")[1]
    return Quantize(kind, ranges, itertools.chain(few, batches), limits or Quantized()), few


@dataclass(frozen=True, kw_only=True)
class Job:
    """The arguments of `export_onnx`, checked; those of the same name are what it was given."""

    subject: Subject  # what is exported
    batch: Batch  # the example, on the CPU
    batches: Iterable[Batch]  # to verify on; read once
    target: Path  # the file to write
    golden_folder: Path | None  # for golden data, if any is wanted
    entry: Path | None  # the file's folder in a Triton model repository, if it is to be in one
    save_weights: Path | None  # for the model's weights as safetensors, if they are wanted
    providers: tuple[str, ...]
    precision: Precision  # to export in
    opset: int | None
    dynamic_batch: bool
    dynamic_axes: Mapping[str, Mapping[int, str]] | None
    external_data: bool | None
    allow: tuple[str, ...]
    require_batchnorm: bool
    allow_constant: tuple[str, ...]
    made_up: bool
    thorough: bool
    keep_debug_info: bool
    seed: int
    progress: Progress | None
    draft: Draft  # of the report
    quantize: Quantize | None = None  # how the proven file is quantized, if it is

    @property
    def needs_deterministic(self) -> list[str]:
        """The arguments that ask for what cannot be had of a file that is random on purpose."""
        return [name for name, wanted in (("golden", self.golden_folder), ("triton", self.entry)) if wanted]

    def tell(self, step: str, done: int) -> None:
        """Says which step begins, of how many."""
        log_step(f"export: {step}")
        if self.progress is not None:
            self.progress(f"export: {step}", done, _STEPS)
