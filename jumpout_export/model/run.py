"""How a network is run to be looked at: on inputs of its own, with every generator as it was, in another precision."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from jumpout_export.model.batches import Batch
from jumpout_export.model.randomness import rng_restored
from jumpout_export.model.signature import fresh, only_tensors, tensors, with_tensors


def run(model: nn.Module, batch: Batch) -> Any:
    """Returns the model's result, without gradients, with generators and the batch as they were."""
    with rng_restored(), torch.no_grad():
        return fresh(batch)(model)


def run_copy(model: nn.Module, batch: Batch) -> Any:
    """Returns what `run` returns for a copy, so that the model stays as it is, too."""
    return run(copy.deepcopy(model), batch)


def call(model: nn.Module, batch: Batch) -> Any:
    """Returns the tensors of the model's result, with the batch as it was; for those that watch the generators."""
    return only_tensors(fresh(batch)(model))


def cast(batch: Batch, dtype: torch.dtype) -> Batch:
    """Returns the batch with its floating-point inputs in another type."""
    return with_tensors(batch, [value.to(dtype) if value.is_floating_point() else value for value in tensors(batch)])


def double_copy(model: nn.Module) -> nn.Module:
    """Returns a copy in float64, to be run on `cast(batch, torch.float64)`."""
    cast_once = {
        id(one): nn.Parameter(one.detach().to(torch.float64, copy=True), one.requires_grad)
        for one in model.parameters()
        if type(one) is nn.Parameter and one.is_floating_point()
    }
    return copy.deepcopy(model, cast_once).double()


def sharing_copy(model: nn.Module) -> nn.Module:
    """Returns a copy with buffers of its own that shares the parameters, which are what is large.

    For a model of which is known, or is looked at afterwards, that no call changes them.
    """
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
