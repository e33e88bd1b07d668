"""A plain ResNet with nn.Dropout, no jumpout: check its BatchNorm statistics, fix them, see what the fix gives back.

`python examples/resnet_with_dropout.py` trains for a minute on small digits. With a folder of class sub-folders of
32 x 32 images, such as CIFAR-10's, `--train DIR --test DIR --epochs 8 --images 10000` shows it at its real size.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from jumpout_export import check_batchnorm, recalibrate_batchnorm


class Block(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm, dropout between them as in Wide ResNets, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, rate: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.drop = nn.Dropout(rate)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.drop(F.relu(self.bn1(self.conv1(x))))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def resnet(channels: int, classes: int, width: int, rate: float) -> nn.Sequential:
    """A ResNet of six blocks in three stages."""
    stem = nn.Sequential(nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    stages = [
        nn.Sequential(Block(width * before, width * after, stride, rate), Block(width * after, width * after, 1, rate))
        for before, after, stride in ((1, 1, 1), (1, 2, 2), (2, 4, 2))
    ]
    return nn.Sequential(stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes))


def read(options: argparse.Namespace) -> list[torch.Tensor]:
    """Train images, train labels, test images, test labels."""
    if options.train is None:
        digits = load_digits()  # 1,797 real images of 8 x 8 pixels
        images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
        labels = torch.tensor(digits.target)
        order = torch.randperm(len(images))
        return [images[order[:1400]], labels[order[:1400]], images[order[1400:]], labels[order[1400:]]]
    from jumpout_export.loading import ImageFolder

    parts = []
    for folder in (options.train, options.test):
        batches = [next(iter(ImageFolder(folder, options.images, seed=0)))]  # one batch with all that is wanted
        parts += [torch.cat(tensors) for tensors in zip(*batches, strict=True)]
    return parts


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int, rate: float) -> None:
    """Adam with a one-cycle schedule; flips and shifts where the images are photographs."""
    steps = epochs * -(-len(images) // 128)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for epoch in range(epochs):
        model.train()
        losses = []
        for chosen in torch.randperm(len(images)).split(128):
            batch = images[chosen]
            if images.shape[1] == 3 and torch.rand(()) < 0.5:
                batch = batch.flip(3)
            loss = F.cross_entropy(model(batch), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        print(f"epoch {epoch + 1}: loss {torch.stack(losses).mean():.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, help="folder of class sub-folders with images")
    parser.add_argument("--test", type=Path, help="another one, for the accuracy")
    parser.add_argument("--images", type=int, default=10_000, help="how many of them to read")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--dropout", type=float, default=0.3)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", help="write the trained weights to this .pt file")
    options = parser.parse_args()
    if (options.train is None) != (options.test is None):
        parser.error("give both --train and --test, or neither")

    torch.manual_seed(options.seed)
    images, labels, test_images, test_labels = read(options)
    model = resnet(images.shape[1], int(labels.max()) + 1, options.width, options.dropout)
    train(model, images, labels, options.epochs, rate=4e-3)
    if options.save:
        torch.save(model.state_dict(), options.save)

    train_batches = list(zip(images.split(128), labels.split(128), strict=True))
    test_batches = list(zip(test_images.split(128), test_labels.split(128), strict=True))
    report = check_batchnorm(model, train_batches)
    print(f"\nas trained: {report.verdict}" + (f", starting at {report.origin}" if report.origin else ""))
    for layer in report.layers:
        print(f"  {layer.name:<12} W = {layer.w:.3f} [{layer.w_low:.3f}, {layer.w_high:.3f}]  {layer.verdict}")

    deployed = evaluate(model, test_batches)
    recalibrate_batchnorm(model, train_batches)  # with training images; the test images judge
    fixed = evaluate(model, test_batches)
    print(f"recalibrated: {check_batchnorm(model, train_batches, outputs=False).verdict}")
    print(f"test accuracy {deployed[0]:.1%} deployed, {fixed[0]:.1%} recalibrated")
    print(f"test NLL      {deployed[1]:.3f} deployed, {fixed[1]:.3f} recalibrated")


@torch.no_grad()
def evaluate(model: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[float, float]:
    """Accuracy and mean negative log likelihood in eval mode."""
    model.eval()
    logits = torch.cat([model(images) for images, _ in batches])
    labels = torch.cat([labels for _, labels in batches])
    return float((logits.argmax(1) == labels).float().mean()), float(F.cross_entropy(logits, labels))


if __name__ == "__main__":
    main()
