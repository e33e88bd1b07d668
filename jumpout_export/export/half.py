"""The network in half precision: BatchNorm folded into the layer before it in full precision, then rounded once."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from jumpout_export.errors import ConversionError
from jumpout_export.export.checks import counted, first_line, joined
from jumpout_export.export.reference import Expected
from jumpout_export.export.scale import Scale
from jumpout_export.export.signature import fresh, input_names, outputs, tensors, with_tensors
from jumpout_export.nn.batches import Batch
from jumpout_export.nn.randomness import rng_restored
from jumpout_export.render.numbers import count
from jumpout_export.report import Check

if TYPE_CHECKING:
    from onnx import ModelProto

# In the metadata of a file whose type is another than the model's.
DTYPE = "jumpout_export.dtype"
# A fold in float64 is this exact, in units of the largest output; a wrong one is off by far more.
_EXACT = 1e-9
# Of an output's size: a network that loses this much, by weights below 6e-8 for example, is another one.
MOST_LOSS = 0.25
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


def check_dtype(dtype: torch.dtype | None) -> None:
    """Raises if a network is not exported in this type.

    Raises:
        ValueError: if it is another one than float16 (or None, for the model's own).
        TypeError: if it is no torch.dtype.
    """
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be torch.float16 or None, got {dtype!r}")
    if dtype == torch.bfloat16:
        raise ValueError(
            "dtype must be torch.float16 or None, got torch.bfloat16: ONNX Runtime's CPU provider has no bfloat16 "
            "convolution, so that the file could not be verified"
        )
    if dtype not in (None, torch.float16):
        raise ValueError(f"dtype must be torch.float16 or None (the model's own), got {dtype}")


def half_copy(model: nn.Module, batch: Batch) -> nn.Module:
    """Returns a float16 copy of a network, which takes float16 inputs.

    A BatchNorm that directly follows a convolution or linear layer is folded into it before anything is rounded, as far
    as float64 runs prove that nothing changes: the converter would fold constants that are rounded already, and a
    running variance may be beyond float16.

    Args:
        model: in eval mode, on the CPU; it stays as it is.
        batch: an example, in the model's own precision.

    Raises:
        ConversionError: if a weight is beyond float16, or the copy does not run.
    """
    network = _fold_batchnorm(model, batch)
    state = [*network.named_parameters(), *network.named_buffers()]
    largest = {name: float(value.detach().abs().max()) for name, value in state if value.numel()}
    half = network.half()
    state = [*half.named_parameters(), *half.named_buffers()]
    broken = [
        f"`{name}` (largest value {largest[name]:.3g})"
        for name, value in state
        if name in largest and math.isfinite(largest[name]) and not torch.isfinite(value).all()
    ]
    if broken:
        raise ConversionError(f"beyond the range of float16 (65504): {joined(broken)}")
    try:
        _run(half, half_batch(batch))
    except Exception as error:  # the user's forward may raise anything
        raise ConversionError(
            f"the model does not run in float16: {type(error).__name__}: {first_line(error)}; does its forward make "
            "float32 tensors?"
        ) from error
    return half


def half_batch(batch: Batch) -> Batch:
    """Returns the batch with its floating-point inputs in float16."""
    return with_tensors(batch, [value.half() if value.is_floating_point() else value for value in tensors(batch)])


def is_half_file(model: ModelProto) -> bool:
    """Whether a file's metadata says that it is the float16 copy of its model."""
    return any(entry.key == DTYPE and entry.value == "float16" for entry in model.metadata_props)


def takes_half(batch: Batch) -> bool:
    """Whether an input of the batch is in float16 already."""
    return any(value.dtype == torch.float16 for value in tensors(batch))


class PrecisionLoss:
    """How far the float16 network is from the model it was made of."""

    def __init__(self, model: nn.Module, half: nn.Module) -> None:
        """Takes both in eval mode, on the CPU."""
        self._model, self._half = copy.deepcopy(model).double(), half
        self._scales: dict[str, Scale] = {}
        self._images = self._same = self._classified = 0
        self._problem = ""

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yields the batches in float16, and compares both networks on each."""
        for batch in batches:
            inputs = half_batch(batch)
            try:
                self._add(batch, inputs)
            except Exception as error:  # what the file is compared on fails the same way, and is reported then
                self._problem = first_line(error)
            yield inputs

    def check(self) -> Check:
        """Returns the largest error in units of the output's size, against a limit that no useful network reaches.

        What is good enough below it, only the user knows.
        """
        scales = {name: scale for name, scale in self._scales.items() if scale.own_errors.numel()}
        errors = {name: scale.own_coarse for name, scale in scales.items()}
        if self._problem:
            return counted("precision", [f"the two networks could not be compared: {self._problem}"])
        if not errors:
            return counted("precision", [], "no floating-point output")
        worst = max(errors, key=lambda name: errors[name])
        note = f"float16 against the model's own precision, {count(self._images, 'image')}: output `{worst}` is off "
        note += f"by up to {errors[worst]:.2%} of its size"
        note += f"; top-1 agrees on {self._same} of {self._classified}" if self._classified else ""
        failed = not errors[worst] <= MOST_LOSS
        return Check(
            name="precision",
            measured=errors[worst],
            limit=MOST_LOSS,
            verdict="fail" if failed else "pass",
            note=f"{note}; float16 does not hold this network" if failed else note,
        )

    def _add(self, batch: Batch, inputs: Batch) -> None:
        exact = with_tensors(batch, [v.double() if v.is_floating_point() else v for v in tensors(batch)])
        names = input_names(self._half, inputs)
        for one, two in zip(
            outputs(_run(self._half, inputs), names), outputs(_run(self._model, exact), names), strict=True
        ):
            if not one.tensor.is_floating_point():
                continue
            self._scales.setdefault(one.name, Scale()).add(Expected(one.name, one.tensor, two.tensor.double()))
            if one.tensor.ndim == 2 and one.tensor.shape[1] > 1:
                self._same += int((one.tensor.argmax(1) == two.tensor.argmax(1)).sum())
                self._classified += len(one.tensor)
        self._images += batch.size


def _fold_batchnorm(model: nn.Module, batch: Batch) -> nn.Module:
    """A float64 copy, all pairs folded, or one by one if that changes something; as it is if float64 does not run."""
    pairs = _pairs(model, batch)
    exact = copy.deepcopy(model).double()
    whole = _folded(exact, pairs)
    if not pairs or _equal(exact, whole, batch):
        return whole
    kept: list[tuple[str, str]] = []
    for pair in pairs:
        if _equal(exact, _folded(exact, [*kept, pair]), batch):
            kept.append(pair)
    return _folded(exact, kept)


def _pairs(model: nn.Module, batch: Batch) -> list[tuple[str, str]]:
    """Paths of the layers and of the BatchNorm that gets their output, each called once."""
    model = copy.deepcopy(model)
    paths = {module: path for path, module in model.named_modules()}
    calls: Counter[nn.Module] = Counter()
    made: dict[int, tuple[nn.Module, Tensor]] = {}
    found: list[tuple[nn.Module, nn.Module]] = []

    def watch(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls[module] += 1
        if isinstance(module, _BatchNorm) and inputs and id(inputs[0]) in made:
            found.append((made[id(inputs[0])][0], module))
        elif isinstance(output, Tensor):
            made[id(output)] = (module, output)  # held, so that its id is not used again

    layers = [module for module in model.modules() if isinstance(module, (_BatchNorm, nn.Linear, *_CONVOLUTIONS))]
    handles = [layer.register_forward_hook(watch) for layer in layers]
    try:
        _run(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return [
        (paths[layer], paths[norm])
        for layer, norm in found
        if calls[layer] == calls[norm] == 1 and not isinstance(layer, _BatchNorm)
    ]


def _folded(model: nn.Module, pairs: Iterable[tuple[str, str]]) -> nn.Module:
    model = copy.deepcopy(model)
    for layer_path, norm_path in pairs:
        layer: Any = model.get_submodule(layer_path)
        norm: Any = model.get_submodule(norm_path)
        if isinstance(layer, nn.Linear):
            fused: nn.Module = fuse_linear_bn_eval(layer, norm)
        else:
            fused = fuse_conv_bn_eval(layer, norm, transpose=isinstance(layer, _TRANSPOSED))
        model.set_submodule(layer_path, fused)
        model.set_submodule(norm_path, nn.Identity().eval())
    return model


def _equal(one: nn.Module, two: nn.Module, batch: Batch) -> bool:
    exact = with_tensors(batch, [value.double() if value.is_floating_point() else value for value in tensors(batch)])
    try:
        pairs = zip(
            outputs(_run(copy.deepcopy(one), exact), []),
            outputs(_run(copy.deepcopy(two), exact), []),
            strict=True,
        )
        return all(_close(a.tensor, b.tensor) for a, b in pairs)
    except Exception:  # a forward that fixes float32 may fail in any way; then nothing is proven
        return False


def _close(one: Tensor, two: Tensor) -> bool:
    if not one.numel():
        return one.shape == two.shape
    size = float(one.abs().double().max())
    return one.shape == two.shape and float((one.double() - two.double()).abs().max()) <= _EXACT * size


def _run(model: nn.Module, batch: Batch) -> Any:
    with rng_restored(), torch.no_grad():
        return fresh(batch)(model)
