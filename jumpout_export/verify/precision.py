"""In which precision a file computes: the model's own, or that of a copy which is made for it.

A precision is one object: what it makes of a network and of its inputs, how it is asked for, how a file says that it
is in it, and what is checked because of it. `register` makes it known to export, verify and the command line.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from torch import nn

from jumpout_export.errors import ArgumentError, ArgumentTypeError
from jumpout_export.fold.network.half import half_copy
from jumpout_export.model.batches import Batch
from jumpout_export.model.norms import is_batchnorm
from jumpout_export.model.run import cast
from jumpout_export.model.signature import tensors
from jumpout_export.onnxfile.metadata import DTYPE, entries
from jumpout_export.verify.values.loss import OWN_LOSS, Loss, PrecisionLoss

if TYPE_CHECKING:
    from onnx import ModelProto

# ONNX has no convolution and no pooling in bfloat16 before.
_BFLOAT16_OPSET = 22


class Precision:
    """The model's own: nothing is converted, so nothing is lost."""

    dtype: torch.dtype | None = None  # that `export_onnx` is asked for it with; None for the model's own
    option = ""  # that the command line is asked for it with; empty for none
    name = ""  # of it in the file's metadata and in reports; empty for the model's own

    def prepare(self, network: nn.Module, _batch: Batch) -> nn.Module:
        """Returns the network as the file is to compute it; it stays as it is.

        Args:
            network: in eval mode, on the CPU.
            _batch: an example, in the model's own precision.

        Raises:
            ConversionError: if the precision does not hold the network, or what is made of it does not run.
        """
        return network

    def batch(self, batch: Batch) -> Batch:
        """Returns a batch as the prepared network takes it."""
        return batch

    def is_in(self, _batch: Batch) -> bool:
        """Whether a batch is in this precision already, so that the model given with it is too."""
        return True

    def loss(self, _model: nn.Module, _network: nn.Module) -> Loss:
        """Returns what measures how far the prepared network is from the model."""
        return OWN_LOSS

    def budget(self, model: nn.Module) -> torch.dtype:
        """Returns the type whose limits a file of the model has to keep."""
        values = itertools.chain(model.parameters(), model.buffers())
        return next((value.dtype for value in values if value.is_floating_point()), torch.float32)

    def metadata(self) -> dict[str, str]:
        """Returns what the file's metadata says of it."""
        return {}

    def notes(self) -> list[str]:
        """Returns what a report says of a comparison in it."""
        return []


class Copied(Precision):
    """Another than the model's own, in a copy that is made for it; reports have its check `precision`."""

    def is_in(self, _batch: Batch) -> bool:
        """Nothing says so, by default."""
        return False

    def loss(self, model: nn.Module, network: nn.Module) -> Loss:
        """Returns the check `precision`: the network against the model in float64, on every batch."""
        return PrecisionLoss(self.name, model, network, self.batch)

    def metadata(self) -> dict[str, str]:
        """Returns its name, by which `precision_of_file` finds it."""
        return {DTYPE: self.name}

    def notes(self) -> list[str]:
        """Says what the file was compared with."""
        return [f"compared with the model in {self.name}, which the file's metadata names as its type"]


class Rounded(Copied):
    """A type of two bytes: a copy that takes and returns it, BatchNorm folded in full precision and rounded once."""

    def __init__(self, dtype: torch.dtype, option: str) -> None:
        self.dtype, self.option, self.name = dtype, option, str(dtype).removeprefix("torch.")
        self._dtype = dtype

    def prepare(self, network: nn.Module, batch: Batch) -> nn.Module:
        """Returns `half_copy`."""
        return half_copy(network, batch, self._dtype)

    def batch(self, batch: Batch) -> Batch:
        """Returns the batch with its floating-point inputs in the type."""
        return cast(batch, self._dtype)

    def is_in(self, batch: Batch) -> bool:
        """Whether an input is in the type."""
        return any(value.dtype == self._dtype for value in tensors(batch))

    def budget(self, _model: nn.Module) -> torch.dtype:
        """Returns the type."""
        return self._dtype


def opset_for(network: nn.Module) -> int | None:
    """Returns the opset that a network needs by its types, where that is not the converter's own."""
    values = itertools.chain(network.parameters(), network.buffers())
    return _BFLOAT16_OPSET if any(value.dtype == torch.bfloat16 for value in values) else None


def about_types(network: nn.Module) -> list[str]:
    """Returns what to do about a network whose types torch's converter mixes up, as notes."""
    if not any(is_batchnorm(module) for module in network.modules()) or opset_for(network) is None:
        return []
    text = "torch's converter folds a BatchNorm in bfloat16 into a weight in float32: export the model in float32 with "
    return [f"{text}dtype=torch.bfloat16 (--dtype bf16), which folds it before anything is rounded"]


OWN = Precision()
_KNOWN: list[Precision] = []


def register(precision: Precision) -> None:
    """Makes a precision known: by its type to `export_onnx`, by its name to `verify_onnx`, by its option to users."""
    _KNOWN.append(precision)


register(Rounded(torch.float16, "fp16"))
register(Rounded(torch.bfloat16, "bf16"))


def dtypes() -> dict[str, torch.dtype]:
    """Returns the types by the option that the command line is asked for them with."""
    return {known.option: known.dtype for known in _KNOWN if known.option and known.dtype}


def precision_of(dtype: torch.dtype | None) -> Precision:
    """Returns the precision that `export_onnx` is asked for.

    Raises:
        ValueError: if no network is exported in this type.
        TypeError: if it is no torch.dtype.
    """
    allowed = f"dtype must be {', '.join(str(known.dtype) for known in _KNOWN)} or None"
    if dtype is None:
        return OWN
    if not isinstance(dtype, torch.dtype):
        raise ArgumentTypeError("dtype", f"{allowed}, got {dtype!r}")
    for known in _KNOWN:
        if known.dtype == dtype:
            return known
    raise ArgumentError("dtype", f"{allowed} (the model's own), got {dtype}")


def precision_of_file(file: ModelProto, batch: Batch) -> Precision:
    """Returns the precision that the model has to be brought to, to be compared with a file; its own by default.

    Args:
        file: whose metadata names it.
        batch: of the model's inputs; one that is in the precision says that the model is in it already.
    """
    name = entries(file).get(DTYPE)
    found = next((known for known in _KNOWN if known.name == name), OWN)
    return OWN if found.is_in(batch) else found
