"""What the file's metadata says about where it comes from; no time, path or user, so equal models give equal bytes."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from jumpout_export.export.budget import describe_budget
from jumpout_export.export.tolerance import PREFIX as TOLERANCE
from jumpout_export.report import BatchNormReport, FoldedLayer

_PREFIX = "jumpout_export."


def provenance(model: nn.Module, layers: Iterable[FoldedLayer], batchnorm: BatchNormReport | None) -> dict[str, str]:
    """Returns the metadata of an exported file, keys sorted and prefixed with `jumpout_export.`.

    Args:
        model: the user's model, for the hash of its weights.
        layers: what became of its stochastic layers.
        batchnorm: the check of its BatchNorm layers, where one was made.
    """
    folded = [f"{layer.path or '.'}: {layer.kind}({layer.settings}) -> {layer.action}" for layer in layers]
    facts = {
        "version": _version("jumpout-export"),
        "torch": torch.__version__,
        **{name: _version(name) for name in ("onnx", "onnxscript")},
        "onnxruntime": _onnxruntime_version(),
        "weights_sha256": weights_sha256(model),
        "folded": "; ".join(folded) or "none",
        "batchnorm": _batchnorm_line(batchnorm),
        "tolerance": describe_budget(),
    }
    return {f"{_PREFIX}{name}": facts[name] for name in sorted(facts)}


def with_tolerance(facts: Mapping[str, str], tolerance: Mapping[str, str]) -> dict[str, str]:
    """Returns the metadata with the tolerance of each output added, keys sorted."""
    lines = {f"{_PREFIX}{TOLERANCE}{name}": line for name, line in tolerance.items()}
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
    return f"{report.verdict}, largest W {worst:.4f} over {report.images} images{origin}"


def _onnxruntime_version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
