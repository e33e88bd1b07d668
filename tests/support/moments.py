"""The moments of what one BatchNorm sees, without a network around it."""

import torch
from torch import nn

from jumpout_export.batchnorm.measure.forward_moments import ForwardMoments
from jumpout_export.batchnorm.measure.layers import Layer
from jumpout_export.batchnorm.measure.moments import Moments


def moments_of(norm: nn.Module, x: torch.Tensor) -> Moments:
    forward = ForwardMoments([Layer("bn", norm, frozen=False)])
    forward.take("bn", x)
    forward.end_forward()
    return forward.moments["bn"]
