"""The networks of the experiments; what stands after each ReLU is a factory: every method runs through one loop.

Sources: CIFAR10(s) is the "v3" network of jseppanen/cifar_lasagne with two hidden layers of 256; the residual networks
follow Zagoruyko and Komodakis 2016 (WRN) and He et al. 2016 (pre-activation ResNet, ResNet-18 with the CIFAR stem).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Regularizer = Callable[[], nn.Module]
Placement = Literal["post_relu", "original"]
PlainPlacement = Literal["post_relu", "post_pooling", "v3"]


class Plain(nn.Sequential):
    """[conv3x3 -> BN -> ReLU -> regularizer], max-pooling, fully connected layers: CIFAR10(s) and the slides' network.

    Args:
        regularizer: makes what stands after each ReLU.
        convolutions: channels of each convolution; 0 stands for a 2x2 max-pooling.
        hidden: widths of the hidden fully connected layers.
        batchnorm: whether a BatchNorm stands before each ReLU.
        classes: number of outputs.
        image: channels, height and width of an image.
        placement: `post_relu`: a regularizer after each ReLU; `post_pooling`: behind the max-pooling where one follows
            the ReLU; `v3`: the inputs of the fully connected layers only, as cifar_lasagne does.

    Shape:
        Input: (N, *image); output: (N, classes).
    """

    def __init__(
        self,
        regularizer: Regularizer,
        convolutions: tuple[int, ...],
        hidden: tuple[int, ...],
        *,
        batchnorm: bool = True,
        classes: int = 10,
        image: tuple[int, int, int] = (3, 32, 32),
        placement: PlainPlacement = "post_relu",
    ) -> None:
        super().__init__()
        if placement not in get_args(PlainPlacement):
            raise ValueError(f"placement must be one of {', '.join(get_args(PlainPlacement))}, got {placement!r}")
        width, *size = image
        for index, channels in enumerate(convolutions):
            name = f"conv{index + 1}"
            if channels == 0:
                self.add_module(f"pool{index + 1}", nn.MaxPool2d(2))
                if placement == "post_pooling":
                    self.add_module(f"pool{index + 1}_noise", regularizer())
                size = [axis // 2 for axis in size]
                continue
            self.add_module(name, nn.Conv2d(width, channels, 3, padding=1, bias=not batchnorm))
            pooled = convolutions[index + 1 : index + 2] == (0,)
            noisy = placement == "post_relu" or (placement == "post_pooling" and not pooled)
            self._activation(name, nn.BatchNorm2d(channels) if batchnorm else None, regularizer if noisy else None)
            width = channels
        self.add_module("flatten", nn.Flatten())
        if placement == "v3":
            self.add_module("noise", regularizer())
        width *= math.prod(size)
        for index, features in enumerate(hidden):
            name = f"fc{index + 1}"
            self.add_module(name, nn.Linear(width, features, bias=not batchnorm))
            self._activation(name, nn.BatchNorm1d(features) if batchnorm else None, regularizer)
            width = features
        self.add_module("head", nn.Linear(width, classes))
        glorot_(self)

    def _activation(self, name: str, norm: nn.Module | None, regularizer: Regularizer | None) -> None:
        if norm is not None:
            self.add_module(f"{name}_bn", norm)
        self.add_module(f"{name}_relu", nn.ReLU())
        if regularizer is not None:
            self.add_module(f"{name}_noise", regularizer())


class PreActivationBlock(nn.Module):
    """BN -> ReLU -> conv -> BN -> ReLU -> conv on the residual path; the shortcut is a 1x1 convolution where it must.

    With `post_relu` the regularizer stands after the second ReLU, on a tensor that is never negative; with `original`
    (Zagoruyko and Komodakis) it stands right after the first convolution, on a signed one.
    """

    def __init__(self, regularizer: Regularizer, inputs: int, outputs: int, stride: int, placement: Placement) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.noise = regularizer()
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.shortcut = None
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.original = placement == "original"

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output."""
        active = self.relu1(self.bn1(x))
        y = self.conv1(active)
        y = self.relu2(self.bn2(self.noise(y))) if self.original else self.noise(self.relu2(self.bn2(y)))
        # Zagoruyko and Komodakis take the shortcut after the common activation where the shape changes.
        return self.conv2(y) + (x if self.shortcut is None else self.shortcut(active))


class BasicBlock(nn.Module):
    """conv -> BN -> ReLU -> conv -> BN, plus the shortcut, then ReLU; the regularizer stands after both ReLUs."""

    def __init__(self, regularizer: Regularizer, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.noise1 = regularizer()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.noise2 = regularizer()
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.shortcut: nn.Module | None = None
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output."""
        y = self.bn2(self.conv2(self.noise1(self.relu1(self.bn1(self.conv1(x))))))
        return self.noise2(self.relu2(y + (x if self.shortcut is None else self.shortcut(x))))


def cifar10s(regularizer: Regularizer, *, width: float = 1.0, **options: object) -> nn.Module:
    """Returns CIFAR10(s): 2,425,930 parameters without BatchNorm, at width 1 and on 3x32x32 images."""
    a, b, c = (round(channels * width) for channels in (64, 128, 256))
    return Plain(regularizer, (a, a, 0, b, b, 0), (c, c), **options)  # type: ignore[arg-type]


def slides(regularizer: Regularizer, *, width: float = 1.0, **options: object) -> nn.Module:
    """Returns the lecture slides' network, conv64-pool-conv128-pool-conv256-FC512-FC512."""
    a, b, c, d = (round(channels * width) for channels in (64, 128, 256, 512))
    return Plain(regularizer, (a, 0, b, 0, c), (d, d), **options)  # type: ignore[arg-type]


def wide_resnet(
    regularizer: Regularizer,
    *,
    depth: int = 28,
    widen: int = 10,
    classes: int = 10,
    image: tuple[int, int, int] = (3, 32, 32),
    placement: Placement = "post_relu",
) -> nn.Module:
    """Returns a WRN; 28-10 has 36,479,194 parameters, 16-8 10,961,370."""
    if (depth - 4) % 6:
        raise ValueError(f"depth must be 6 n + 4, got {depth}")
    network = nn.Sequential()
    network.add_module("stem", nn.Conv2d(image[0], 16, 3, 1, 1, bias=False))
    inputs = 16
    for group, outputs in enumerate((16 * widen, 32 * widen, 64 * widen)):
        for index in range((depth - 4) // 6):
            stride = 2 if group and not index else 1
            block = PreActivationBlock(regularizer, inputs, outputs, stride, placement)
            network.add_module(f"group{group + 1}_{index + 1}", block)
            inputs = outputs
    for name, layer in _head(inputs, classes, nn.BatchNorm2d(inputs)):
        network.add_module(name, layer)
    return he_(network)


def resnet20(regularizer: Regularizer, **options: object) -> nn.Module:
    """Returns the pre-activation ResNet-20, 272,282 parameters."""
    # 6 n + 2 layers in He's count, which leaves the shortcuts out, and 6 n + 4 in that of the WRN paper.
    return wide_resnet(regularizer, depth=22, widen=1, **options)  # type: ignore[arg-type]


def resnet18(regularizer: Regularizer, *, classes: int = 10, image: tuple[int, int, int] = (3, 32, 32)) -> nn.Module:
    """Returns ResNet-18 with a 3x3 stem and no pooling in front, 11,173,962 parameters."""
    network = nn.Sequential()
    network.add_module("stem", nn.Conv2d(image[0], 64, 3, 1, 1, bias=False))
    network.add_module("stem_bn", nn.BatchNorm2d(64))
    network.add_module("stem_relu", nn.ReLU())
    inputs = 64
    for group, outputs in enumerate((64, 128, 256, 512)):
        for index in range(2):
            block = BasicBlock(regularizer, inputs, outputs, 2 if group and not index else 1)
            network.add_module(f"group{group + 1}_{index + 1}", block)
            inputs = outputs
    for name, layer in _head(inputs, classes, None):
        network.add_module(name, layer)
    return he_(network)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "cifar10s": cifar10s,
    "slides": slides,
    "wide_resnet": wide_resnet,
    "resnet20": resnet20,
    "resnet18": resnet18,
}


def glorot_(network: nn.Module) -> None:
    """Initialises in place: Glorot with gain sqrt 2, biases 0, the last layer with gain 1."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight, math.sqrt(2.0) if layer is not layers[-1] else 1.0)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def he_(network: nn.Module) -> nn.Module:
    """Initialises the convolutions in place (He et al. 2015, by fan-out) and returns the network."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.Linear):
                layer.bias.zero_()
    return network


def _head(features: int, classes: int, norm: nn.Module | None) -> Iterator[tuple[str, nn.Module]]:
    if norm is not None:
        yield "head_bn", norm
        yield "head_relu", nn.ReLU()
    yield "pool", nn.AdaptiveAvgPool2d(1)
    yield "flatten", nn.Flatten()
    yield "head", nn.Linear(features, classes)
