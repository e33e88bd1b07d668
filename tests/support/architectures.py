"""Small networks of many kinds, with noise in them and BatchNorm statistics that are not the initial ones.

`ARCHITECTURES` maps a name to a function that builds the network, and to one that makes a batch of inputs for it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from jumpout_export import Jumpout

CLASSES = 5


def randomized(model: nn.Module, seed: int, scale: float = 1.0) -> nn.Module:
    """Gives every normalization layer parameters and statistics as training leaves them: none is 0 or 1.

    Args:
        model: changed in place, and returned.
        seed: of the random numbers.
        scale: factor of all weights with two dimensions or more.
    """
    generator = torch.Generator().manual_seed(seed)

    def between(like, low, high):
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.copy_(between(module.running_mean, -0.5, 0.5))
                # Variances of channels differ by orders of magnitude in trained networks.
                module.running_var.copy_(10 ** between(module.running_var, -2, 1))
                module.num_batches_tracked.fill_(100)
            if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.LayerNorm):
                module.weight.copy_(between(module.weight, -1.0, 1.5))
                module.bias.copy_(between(module.bias, -0.5, 0.5))
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    return model


def conv_bn(inputs, outputs, size=3, **options):
    padding = size // 2
    return [nn.Conv2d(inputs, outputs, size, padding=padding, bias=False, **options), nn.BatchNorm2d(outputs)]


def vgg():
    features = []
    for inputs, outputs in ((3, 8), (8, 12), (12, 16)):
        features += [*conv_bn(inputs, outputs), Jumpout(sigma=0.1, relu=True), nn.MaxPool2d(2)]
    head = [nn.Flatten(), nn.LazyLinear(32), nn.BatchNorm1d(32), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(32, 5)]
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(2), *head)


class Residual(nn.Module):
    """A basic block, or a bottleneck; the shortcut is a convolution where the width or the size changes."""

    def __init__(self, inputs, outputs, stride=1, bottleneck=False, groups=1):
        super().__init__()
        middle = outputs // 2 if bottleneck else outputs
        if bottleneck:
            body = [*conv_bn(inputs, middle, 1), nn.ReLU(inplace=True)]
            body += [*conv_bn(middle, middle, stride=stride, groups=groups), nn.ReLU(inplace=True), nn.Dropout2d(0.1)]
            body += conv_bn(middle, outputs, 1)
        else:
            body = [*conv_bn(inputs, outputs, stride=stride), nn.ReLU(inplace=True), Jumpout()]
            body += conv_bn(outputs, outputs)
        self.body = nn.Sequential(*body)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv_bn(inputs, outputs, 1, stride=stride))

    def forward(self, x):
        return F.relu(self.body(x) + self.shortcut(x), inplace=True)


def resnet():
    return nn.Sequential(
        *conv_bn(3, 8, 5, stride=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
        Residual(8, 8),
        Residual(8, 16, stride=2, bottleneck=True),
        Residual(16, 16, bottleneck=True, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(16, CLASSES),
    )


class PreActivation(nn.Module):
    """BatchNorm and ReLU come before each convolution, so no BatchNorm can be folded into the one before it."""

    def __init__(self, inputs, outputs, stride=1, noise=None):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.noise = noise or nn.Identity()
        change = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if change else None

    def forward(self, x):
        h = F.relu(self.bn1(x))
        short = x if self.shortcut is None else self.shortcut(h)
        return self.conv2(self.noise(F.relu(self.bn2(self.conv1(h))))) + short


def preactivation_resnet():
    blocks = [nn.Conv2d(3, 8, 3, padding=1), PreActivation(8, 8), PreActivation(8, 16, 2), PreActivation(16, 16)]
    return nn.Sequential(*blocks, nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), _head(16))


def wide_resnet():
    widths = ((8, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1))
    blocks = [PreActivation(*width, noise=nn.Dropout(0.3)) for width in widths]
    end = [nn.BatchNorm2d(32), Jumpout(sigma=0.1, relu=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), _head(32)]
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), *blocks, *end)


class SqueezeExcite(nn.Module):
    """Scales channels by a gate that is computed from their means."""

    def __init__(self, channels):
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x):
        gate = self.up(F.silu(self.down(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class InvertedResidual(nn.Module):
    """MobileNet's block: widen, depthwise convolution, narrow; optionally squeeze and excite."""

    def __init__(self, inputs, outputs, stride=1, excite=False):
        super().__init__()
        wide = 4 * inputs
        body = [*conv_bn(inputs, wide, 1), nn.ReLU6(), *conv_bn(wide, wide, stride=stride, groups=wide), nn.Hardswish()]
        body += [SqueezeExcite(wide)] if excite else []
        self.body = nn.Sequential(*body, *conv_bn(wide, outputs, 1))
        self.shortcut, self.noise = stride == 1 and inputs == outputs, nn.Dropout2d(0.2)

    def forward(self, x):
        return x + self.noise(self.body(x)) if self.shortcut else self.body(x)


def mobilenet():
    blocks = [InvertedResidual(6, 6), InvertedResidual(6, 10, 2), InvertedResidual(10, 10)]
    return nn.Sequential(
        *conv_bn(3, 6, stride=2), nn.ReLU6(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), _head(10)
    )


def squeeze_excite():
    blocks = [InvertedResidual(8, 8, excite=True), InvertedResidual(8, 12, 2, excite=True)]
    return nn.Sequential(*conv_bn(3, 8), nn.SiLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), _head(12))


class Dense(nn.Module):
    """A block whose layers read all outputs before them."""

    def __init__(self, inputs, growth, layers):
        super().__init__()
        widths = [inputs + growth * number for number in range(layers)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.convs = nn.ModuleList(nn.Conv2d(width, growth, 3, padding=1, bias=False) for width in widths)
        self.noise = Jumpout(sigma=0.1)

    def forward(self, x):
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, self.noise(conv(F.relu(norm(x))))], 1)
        return x


def densenet():
    transition = [nn.BatchNorm2d(17), nn.ReLU(), nn.Conv2d(17, 8, 1), nn.AvgPool2d(2)]
    end = [nn.BatchNorm2d(18), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), _head(18)]
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Dense(8, 3, 3), *transition, Dense(8, 5, 2), *end)


class Transformer(nn.Module):
    """An encoder over tokens, with a BatchNorm head."""

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(20, 16), nn.Parameter(torch.randn(9, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.Linear(16, 24), nn.BatchNorm1d(24), Jumpout(relu=True), nn.Linear(24, CLASSES))

    def forward(self, x):
        return self.head(self.encoder(self.tokens(x) + self.places).mean(1))


class OneDimensional(nn.Module):
    """Dilated convolutions over a signal, gated; two outputs."""

    def __init__(self):
        super().__init__()
        self.start = nn.Conv1d(2, 8, 7, stride=2, padding=3)
        self.norms = nn.ModuleList(nn.BatchNorm1d(8) for _ in range(3))
        self.convs = nn.ModuleList(nn.Conv1d(8, 16, 3, padding=2**n, dilation=2**n) for n in range(3))
        self.noise, self.head = nn.Dropout1d(0.2), _head(8)

    def forward(self, x):
        x = self.start(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            value, gate = conv(norm(x)).chunk(2, 1)
            x = x + self.noise(torch.tanh(value) * torch.sigmoid(gate))
        return self.head(x.mean(2)), x


class TwoInputs(nn.Module):
    """An image and a row of numbers, joined."""

    def __init__(self):
        super().__init__()
        self.image = nn.Sequential(*conv_bn(3, 8, stride=2), Jumpout(relu=True), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.numbers = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 12), nn.ReLU(), nn.AlphaDropout(0.1))
        self.head = nn.Sequential(nn.Linear(44, 16), nn.BatchNorm1d(16), nn.ELU(), _head(16))

    def forward(self, image, numbers):
        return self.head(torch.cat([self.image(image), self.numbers(numbers)], 1))


class UNet(nn.Module):
    """Down, up by a transposed convolution, joined with what was there before; one value per pixel."""

    def __init__(self):
        super().__init__()
        self.down1 = nn.Sequential(*conv_bn(3, 8), nn.ReLU(inplace=True), nn.Dropout2d(0.1))
        self.down2 = nn.Sequential(nn.MaxPool2d(2), *conv_bn(8, 12), nn.ReLU(inplace=True), Jumpout())
        self.up = nn.Sequential(nn.ConvTranspose2d(12, 8, 2, stride=2), nn.BatchNorm2d(8), nn.LeakyReLU(0.1))
        self.end = nn.Sequential(*conv_bn(16, 8), nn.ReLU(), nn.Conv2d(8, 2, 1))

    def forward(self, x):
        first = self.down1(x)
        return self.end(torch.cat([self.up(self.down2(first)), first], 1))


class Recurrent(nn.Module):
    """A convolution over time, then an LSTM in both directions, and a BatchNorm head."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv1d(4, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2))
        self.lstm = nn.LSTM(8, 10, num_layers=2, batch_first=True, bidirectional=True, dropout=0.3)
        self.head = nn.Sequential(nn.BatchNorm1d(20), Jumpout(relu=True), nn.Linear(20, CLASSES))

    def forward(self, x):
        out, _ = self.lstm(self.conv(x).transpose(1, 2))
        return self.head(out[:, -1])


def mixed_norms():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.GroupNorm(2, 8), nn.GELU(), nn.Dropout2d(0.1),
        nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.Mish(), nn.AdaptiveAvgPool2d(3), nn.LayerNorm([12, 3, 3]),
        nn.Flatten(), nn.Linear(108, 20), nn.LayerNorm(20), Jumpout(relu=True), nn.Linear(20, 5), nn.LogSoftmax(1),
    )  # fmt: skip


class Mixer(nn.Module):
    """MLP-Mixer: mixes patches, then channels; its first normalization is a BatchNorm over patches."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, stride=4)
        self.norm1, self.norm2 = nn.BatchNorm1d(9), nn.LayerNorm(12)
        self.across = nn.Sequential(nn.Linear(9, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, 9))
        self.within = nn.Sequential(nn.Linear(12, 24), nn.GELU(), Jumpout(), nn.Linear(24, 12))
        self.head = _head(12)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.across(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.within(self.norm2(x))
        return self.head(x.mean(1))


def _head(width):
    return nn.Sequential(nn.Dropout(0.2), nn.Linear(width, CLASSES))


def images(count=4, size=12):
    return torch.randn(count, 3, size, size)


ARCHITECTURES = {
    "VGG": (vgg, images),
    "ResNet": (resnet, lambda: images(size=16)),
    "pre-activation ResNet": (preactivation_resnet, images),
    "wide ResNet": (wide_resnet, images),
    "MobileNet": (mobilenet, images),
    "squeeze and excite": (squeeze_excite, images),
    "DenseNet": (densenet, images),
    "transformer": (Transformer, lambda: torch.randint(20, (4, 9))),
    "one-dimensional": (OneDimensional, lambda: torch.randn(4, 2, 31)),
    "two inputs": (TwoInputs, lambda: (images(), torch.randn(4, 6))),
    "U-Net": (UNet, images),
    "LSTM": (Recurrent, lambda: torch.randn(4, 4, 11)),
    "mixed norms": (mixed_norms, lambda: images(size=13)),
    "MLP-Mixer": (Mixer, images),
}


def build(name: str, seed: int, scale: float = 1.0) -> tuple[nn.Module, object]:
    """Returns the network of that name in train mode, and a batch of inputs: a tensor or a tuple of them."""
    torch.manual_seed(seed)
    make, inputs = ARCHITECTURES[name]
    model, batch = make(), inputs()
    model.eval()(*batch) if isinstance(batch, tuple) else model.eval()(batch)  # lazy layers take their sizes
    return randomized(model, seed, scale).train(), batch
