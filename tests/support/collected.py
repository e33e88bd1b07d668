"""Small networks to collect moments of, and everything of one that a pass must leave."""

import torch
from torch import nn

from jumpout_export.batchnorm.measure.collect import collect
from jumpout_export.batchnorm.measure.feed import Feed
from jumpout_export.batchnorm.measure.layers import batchnorm_layers
from jumpout_export.batchnorm.measure.moments import Moments
from jumpout_export.batchnorm.measure.states import SERVING
from jumpout_export.nn.modules import Jumpout


def one_layer(norm: nn.Module, x: torch.Tensor) -> Moments:
    collected = collect(Feed(norm, [x]), batchnorm_layers(norm), SERVING, "test")
    return collected.moments[""]


def convolutional() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5))


def snapshot(model: nn.Module) -> tuple[object, ...]:
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    flags = [(m.training, getattr(m, "track_running_stats", None)) for m in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    sampled = [m.statistics for m in model.modules() if isinstance(m, Jumpout)]
    return state, flags, hooks, sampled, torch.get_rng_state(), [p.requires_grad for p in model.parameters()]
