"""What the file's metadata says about where it comes from; no time, path or user, so equal models give equal bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from jumpout_export.environment import version_of
from jumpout_export.fold.network.subject import Subject, subject_of
from jumpout_export.model.wrappers import without_wrappers
from jumpout_export.onnxfile.metadata import BATCHNORM, FOLDED, PREFIX, TOLERANCE, describe_layers
from jumpout_export.report import BatchNormReport, FoldedLayer
from jumpout_export.text import count, joined
from jumpout_export.tolerances import describe_budget
from jumpout_export.verify.precision import OWN, Precision


def provenance(
    model: nn.Module | Subject,
    layers: Iterable[FoldedLayer],
    batchnorm: BatchNormReport | None,
    precision: Precision = OWN,
) -> dict[str, str]:
    """Returns the metadata of a file that is made of the user's model, keys sorted, with the prefix `jumpout_export.`.

    Raises:
        ValueError: if `batchnorm` has layers that the model has not.
    """
    import onnxruntime

    subject = subject_of(model)
    if batchnorm is not None:
        _refuse_other_model(subject, batchnorm)
    facts = {
        "version": version_of("jumpout-export") or "not installed",
        "torch": torch.__version__,
        **{name: version_of(name) or "not installed" for name in ("onnx", "onnxscript")},
        "onnxruntime": str(onnxruntime.__version__),  # whichever of its packages it comes from
        "weights_sha256": weights_sha256(subject.module),
        "tolerance": describe_budget(precision.budget(subject.module)),
    }
    keyed = {f"{PREFIX}{name}": value for name, value in facts.items()}
    keyed |= {FOLDED: describe_layers(layers), BATCHNORM: _batchnorm_line(batchnorm)}
    return dict(sorted(keyed.items()))


def with_tolerance(facts: Mapping[str, str], tolerance: Mapping[str, str]) -> dict[str, str]:
    """Returns the metadata with the tolerance of each output added, keys sorted."""
    lines = {f"{TOLERANCE}{name}": line for name, line in tolerance.items()}
    return dict(sorted({**facts, **lines}.items()))


def weights_sha256(model: nn.Module) -> str:
    """Returns the sha256 over names, dtypes, shapes and bytes of all parameters and buffers in the state_dict."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _batchnorm_line(report: BatchNormReport | None) -> str:
    if report is None:
        return "not checked"
    worst = max((layer.w for layer in report.layers), default=0.0)
    origin = f", origin {report.origin}" if report.origin else ""
    return f"{report.verdict}, largest W {worst:.4f} over {count(report.samples, 'sample')}{origin}"


def _refuse_other_model(subject: Subject, report: BatchNormReport) -> None:
    """A report may leave layers out, those that were not reached."""
    there = subject.channels()
    if there is None:
        return
    asked = [(layer.name, layer.channels) for layer in report.layers]
    # The check may have seen a wrapper that is none of torch's, or the export may, and only its usual name tells.
    if not (_all_there(asked, there, str) or _all_there(asked, there, without_wrappers)):
        has = joined([f"`{name}` ({number or '?'} channels)" for name, number in asked])
        own = joined([f"`{name}` ({number} channels)" for name, number in there.items()]) or "none"
        raise ValueError(f"the BatchNorm report is of another model: it has layers {has}; the model has {own}")


def _all_there(asked: list[tuple[str, int]], there: dict[str, int], spelled: Callable[[str], str]) -> bool:
    """Whether the model has every layer that is asked for, with as many channels, where each has a name of its own."""
    known = {spelled(name): number for name, number in there.items()}
    wanted = {spelled(name): number for name, number in asked}
    unique = len(known) == len(there) and len(wanted) == len(asked)
    return unique and all(name in known and number in (0, known[name]) for name, number in wanted.items())
