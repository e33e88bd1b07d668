"""Takes a trained network through the product: check BatchNorm, recalibrate, export, verify."""

from __future__ import annotations

import copy
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from experiments.datasets import Images
from experiments.results import Served, digits
from experiments.training import evaluate, normalise
from jumpout_export import check_batchnorm, export_onnx, recalibrate_batchnorm
from jumpout_export.report import BatchNormReport

_BATCH = 250
# Training images that the check and the recalibration see, and images that the saved file is verified on.
_CALIBRATION = 5000
_VERIFIED = 64


def serve(network: nn.Module, images: Images, device: torch.device, batch_size: int) -> Served:
    """Returns what the check, the fix and the export of a trained network say; the network is left as it was.

    The calibration images are training images, as a user has them; the accuracies are those of the test images.

    Args:
        network: trained, on `device`.
        images: the data it was trained on.
        device: where torch runs.
        batch_size: of the training, for the expected noise of the running statistics.
    """
    network = copy.deepcopy(network)
    x, y = images.train[:_CALIBRATION], images.train_labels[:_CALIBRATION]
    batches = [
        (normalise(part.to(device)), labels.to(device))
        for part, labels in zip(x.split(_BATCH), y.split(_BATCH), strict=True)
    ]
    nll, accuracy = evaluate(network, images.test, images.test_labels, device)
    served = Served(
        accuracy=digits(accuracy),
        accuracy_after=digits(accuracy),
        nll=digits(nll),
        nll_after=digits(nll),
        exported=False,
    )
    after = None
    if any(isinstance(module, _BatchNorm) for module in network.modules()):
        options = {"samples": len(x), "training_batch_size": batch_size}
        _take(served, check_batchnorm(network, batches, **options))
        recalibrate_batchnorm(network, batches)
        after = check_batchnorm(network, batches, **options)
        served.verdict_after = after.verdict
        served.w_after = digits(max(layer.w for layer in after.layers))
        nll, accuracy = evaluate(network, images.test, images.test_labels, device)
        served.nll_after, served.accuracy_after = digits(nll), digits(accuracy)
    _export(served, network, normalise(images.test[:_VERIFIED]), after)
    return served


def _take(served: Served, report: BatchNormReport) -> None:
    served.verdict, served.origin = report.verdict, report.origin
    served.cause = next((layer.cause for layer in report.layers if layer.name == report.origin), None)
    served.w = {layer.name: digits(layer.w) for layer in report.layers}
    served.w_low = {layer.name: digits(layer.w_low) for layer in report.layers}
    served.w_high = {layer.name: digits(layer.w_high) for layer in report.layers}


def _export(served: Served, network: nn.Module, example: torch.Tensor, batchnorm: BatchNormReport | None) -> None:
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = export_onnx(network, Path(folder) / "model.onnx", example, batchnorm=batchnorm)
    served.exported = bool(report)
    served.export_seconds = round(time.monotonic() - start, 1)
    failed = [check for check in report.checks if check.blocks]
    served.export_problem = f"{failed[0].name}: {failed[0].note}" if failed else ""
