"""The network whose file is verified, what a report found, and a changed constant."""

import torch
from onnx import numpy_helper
from torch import nn

from jumpout_export import Jumpout


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.drop = Jumpout(sigma=0.1, relu=True)
        self.linear = nn.Linear(4, 5)

    def forward(self, x):
        return self.linear(self.drop(self.bn(self.conv(x))).mean((2, 3)))


SAMPLES = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def found(report):
    return {check.name: check for check in report.checks if check.verdict != "pass"}


def initializer(proto, name):
    return next(tensor for tensor in proto.graph.initializer if tensor.name == name)


def shifted(proto, name, amount):
    tensor = initializer(proto, name)
    array = numpy_helper.to_array(tensor).copy()
    array.reshape(-1)[0] += amount
    tensor.CopyFrom(numpy_helper.from_array(array, name))
