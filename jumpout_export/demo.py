"""The main job on real images: train with jumpout, check BatchNorm, recalibrate, export, verify, report."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jumpout_export.batchnorm.check import check_batchnorm
from jumpout_export.batchnorm.recalibrate import recalibrate_batchnorm
from jumpout_export.batchnorm.serving import ServingStatistics
from jumpout_export.environment import environment
from jumpout_export.errors import LoadError
from jumpout_export.export.publish import export_onnx
from jumpout_export.extras import require, require_onnx
from jumpout_export.loading import ImageFolder, read_image, save_weights
from jumpout_export.log import log_step
from jumpout_export.model.batches import Progress
from jumpout_export.nn.modules import Jumpout
from jumpout_export.report import BatchNormReport, PipelineReport, TrainingHistory

BATCH_SIZE = 64
_MAX_TRAIN_IMAGES = 5000  # of a folder, so that the demo stays a demo on two cores
_MAX_TEST_IMAGES = 2000


@dataclass(frozen=True)
class Images:
    """Images and labels, split for training and testing."""

    train: Tensor  # (N, C, H, W) float32 in [0, 1]
    train_labels: Tensor  # (N,) int64
    test: Tensor  # (M, C, H, W) float32 in [0, 1]
    test_labels: Tensor  # (M,) int64
    source: str  # one line that says where they come from

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.train_labels.max()) + 1


def network(channels: int = 1, classes: int = 10) -> nn.Sequential:
    """Returns the demo's network: four convolutions, each with BatchNorm, ReLU and jumpout in one pass.

    Shape:
        Input: (N, channels, H, W), H and W at least 2; output: (N, classes).
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index, (inputs, outputs) in enumerate([(channels, 32), (32, 32), (32, 64), (64, 64)], start=1):
        layers[f"conv{index}"] = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        layers[f"bn{index}"] = nn.BatchNorm2d(outputs)
        layers[f"jumpout{index}"] = Jumpout(sigma=0.1, relu=True)
        if index == 2:
            layers["pool"] = nn.MaxPool2d(2)
    layers["average"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["classify"] = nn.Linear(64, classes)
    return nn.Sequential(layers)


def run_demo(
    out: Path, data: Path | None = None, seed: int = 0, epochs: int = 16, progress: Progress | None = None
) -> PipelineReport:
    """Trains, checks, recalibrates, exports and verifies, and leaves everything a user needs in `out`.

    Written: `model.onnx`, `weights.safetensors` (recalibrated), `weights_as_trained.safetensors`, `data.npz` (test
    images), `model.py` (the factory the command line needs), `test_data_set_0/` (golden data); the report is for the
    caller to write.

    Args:
        out: folder, made if missing.
        data: folder of images (`train/<class>/` and `test/<class>/`, or `<class>/` of which a fifth is kept for
            testing); None for scikit-learn's digits: 1,797 real images of 8 x 8 pixels.
        seed: of torch and of the split.
        epochs: passes over the training images.
        progress: called with what is done, how much and of how much.

    Raises:
        LoadError: if the data cannot be read.
        ImportError: if a package of the `demo` extra is missing.
    """
    require_onnx()
    report_progress = progress or (lambda what, done, total: None)
    images = load_digits(seed) if data is None else load_folder(data, seed, report_progress)
    torch.manual_seed(seed)
    model = network(images.train.shape[1], images.classes)
    history = train(model, images, epochs, report_progress)

    train_batches = batches(images.train, images.train_labels)
    test_batches = batches(images.test, images.test_labels)
    before = _check(model, train_batches, test_batches, progress)
    out.mkdir(parents=True, exist_ok=True)
    save_weights(model, out / "weights_as_trained.safetensors")
    recalibrate_batchnorm(model, train_batches, progress=progress)
    after = _check(model, train_batches, test_batches, progress)
    save_weights(model, out / "weights.safetensors")
    np.savez(out / "data.npz", inputs=images.test.numpy(), labels=images.test_labels.numpy())
    (out / "model.py").write_text(_model_file(images))

    export = export_onnx(
        model,
        out / "model.onnx",
        images.test[:8],
        calibration=test_batches[:4],
        batchnorm=after,
        golden=out,
        progress=progress,
    )
    return PipelineReport(
        title=f"jumpout-export demo on {images.source}",
        training=history,
        before=before,
        after=after,
        export=export,
        environment=environment(),
        notes=[
            f"{len(images.train)} training and {len(images.test)} test images, {epochs} epochs, seed {seed}",
            "the BatchNorm statistics were checked on all images and recalibrated on the training images",
            "the effect on the outputs was measured on the test images",
        ],
    )


def train(model: nn.Module, images: Images, epochs: int, progress: Progress) -> TrainingHistory:
    """Trains `model` in place with Adam and a cosine schedule, and returns what happened in each epoch.

    Each epoch ends with the accuracy by the running statistics, and by those that serving sees.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=1e-4)
    log_step(f"training: {epochs} epochs")
    steps = -(-len(images.train) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    serving = ServingStatistics(model)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Jumpout)}
    history = TrainingHistory(active_fraction={name: [] for name in layers}, rate={name: [] for name in layers})
    for epoch in range(epochs):
        progress("training", epoch, epochs)
        model.train()
        losses, hits = [], 0
        sampled: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}
        order = torch.randperm(len(images.train))
        for chosen in order.split(BATCH_SIZE):
            inputs = images.train[chosen]
            output = model(inputs)
            loss = F.cross_entropy(output, images.train_labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            serving.step(inputs)
            losses.append(loss.detach() * len(chosen))
            hits += int((output.argmax(1) == images.train_labels[chosen]).sum())
            for name, layer in layers.items():
                sampled[name].append((layer.statistics.q, layer.statistics.p_prime))
        history.loss.append(float(torch.stack(losses).sum()) / len(images.train))
        history.train_accuracy.append(hits / len(images.train))
        history.test_accuracy.append(accuracy(model, images))
        with serving():
            history.serving_accuracy.append(accuracy(model, images))
        for name, pairs in sampled.items():
            history.active_fraction[name].append(float(torch.stack([q for q, _ in pairs]).mean()))
            history.rate[name].append(float(torch.stack([rate for _, rate in pairs]).mean()))
    progress("training", epochs, epochs)
    return history


@torch.no_grad()
def accuracy(model: nn.Module, images: Images) -> float:
    """Returns the top-1 accuracy on the test images, in [0, 1]; leaves the model in eval mode."""
    model.eval()
    hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches(images.test, images.test_labels))
    return hits / len(images.test)


def batches(inputs: Tensor, labels: Tensor, size: int = 128) -> list[tuple[Tensor, Tensor]]:
    """Returns (inputs, labels) cut into batches."""
    return list(zip(inputs.split(size), labels.split(size), strict=True))


def load_digits(seed: int) -> Images:
    """Returns scikit-learn's digits, a fifth kept for testing.

    Raises:
        ImportError: if scikit-learn is not installed.
    """
    require("sklearn.datasets", "demo", "the demo's images need scikit-learn: ")
    from sklearn.datasets import load_digits as digits

    data = digits()
    inputs = torch.from_numpy(data.images).float().div(16).unsqueeze(1)
    labels = torch.from_numpy(data.target).long()
    return _split(inputs, labels, seed, "scikit-learn's digits (1,797 real images of 8 x 8 pixels)")


def load_folder(root: Path, seed: int, progress: Progress) -> Images:
    """Returns images from a folder, at most 5,000 for training and 2,000 for testing.

    Raises:
        LoadError: if there is no such folder, it holds too few images or one cannot be read.
    """
    if not root.is_dir():
        raise LoadError(f"--data {root}: there is no such folder")
    if (root / "train").is_dir() and (root / "test").is_dir():
        train_images = _read(ImageFolder(root / "train", 1, seed), _MAX_TRAIN_IMAGES, progress)
        test_images = _read(ImageFolder(root / "test", 1, seed), _MAX_TEST_IMAGES, progress)
        return Images(*train_images, *test_images, f"{root.resolve().name}, a folder of images")
    inputs, labels = _read(ImageFolder(root, 1, seed), _MAX_TRAIN_IMAGES, progress)
    return _split(inputs, labels, seed, f"{root.resolve().name}, a folder of images")


def _check(
    model: nn.Module,
    train_batches: list[tuple[Tensor, Tensor]],
    test_batches: list[tuple[Tensor, Tensor]],
    progress: Progress | None,
) -> BatchNormReport:
    """Statistics on all images, for narrow error bars; accuracy on the test images alone."""
    everything = [*train_batches, *test_batches]
    samples = sum(len(labels) for _, labels in everything)
    report = check_batchnorm(model, everything, samples=samples, outputs=False, progress=progress)
    report.outputs = check_batchnorm(model, test_batches, samples=samples, progress=progress).outputs
    return report


def _split(inputs: Tensor, labels: Tensor, seed: int, source: str) -> Images:
    if len(inputs) < 10:
        raise LoadError(f"{source}: at least 10 images are needed, got {len(inputs)}")
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    test, rest = order[: len(order) // 5], order[len(order) // 5 :]
    return Images(inputs[rest], labels[rest], inputs[test], labels[test], source)


def _read(folder: ImageFolder, most: int, progress: Progress) -> tuple[Tensor, Tensor]:
    files = folder.files[:most]
    images = []
    for index, (file, _) in enumerate(files):
        if index % 500 == 0:
            progress("reading images", index, len(files))
        images.append(read_image(file))
        if images[-1].shape != images[0].shape:
            raise LoadError(f"image {file} differs in size from {files[0][0]}; all must have one size")
    return torch.stack(images), torch.tensor([label for _, label in files])


def _model_file(images: Images) -> str:
    return (
        '"""The network of this demo run, as the command line names it: `model:network`."""\n\n'
        "from jumpout_export import demo\n\n\n"
        f"def network():\n    return demo.network(channels={images.train.shape[1]}, classes={images.classes})\n"
    )
