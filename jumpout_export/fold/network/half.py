"""The network in half precision: BatchNorm folded into the layer before it in full precision, then rounded once."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from jumpout_export.errors import ConversionError
from jumpout_export.model.batches import Batch
from jumpout_export.model.norms import is_batchnorm
from jumpout_export.model.run import cast, double_copy, run, run_copy
from jumpout_export.model.signature import outputs
from jumpout_export.text import first_line, joined
from jumpout_export.tolerances import FOLD_EXACT

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


def half_copy(model: nn.Module, batch: Batch, dtype: torch.dtype = torch.float16) -> nn.Module:
    """Returns a copy of a network in float16, or another type of two bytes, which takes inputs of that type.

    A BatchNorm that directly follows a convolution or linear layer is folded into it before anything is rounded, as far
    as float64 runs prove that nothing changes: the converter would fold constants that are rounded already, and a
    running variance may be beyond float16. The model, in eval mode and on the CPU, stays as it is; the example is in
    its own precision.

    Raises:
        ConversionError: if a weight is beyond the type, or the copy does not run.
    """
    network = _fold_batchnorm(model, batch)
    state = [*network.named_parameters(), *network.named_buffers()]
    largest = {name: float(value.detach().abs().max()) for name, value in state if value.numel()}
    half, name = network.to(dtype), str(dtype).removeprefix("torch.")
    broken = [
        f"`{path}` (largest value {largest[path]:.3g})"
        for path, value in [*half.named_parameters(), *half.named_buffers()]
        if path in largest and math.isfinite(largest[path]) and not torch.isfinite(value).all()
    ]
    if broken:
        raise ConversionError(f"beyond the range of {name} ({torch.finfo(dtype).max:.5g}): {joined(broken)}")
    try:
        run(half, cast(batch, dtype))
    except Exception as error:  # the user's forward may raise anything
        raise ConversionError(
            f"the model does not run in {name}: {type(error).__name__}: {first_line(error)}; does its forward make "
            "float32 tensors?"
        ) from error
    return half


def _fold_batchnorm(model: nn.Module, batch: Batch) -> nn.Module:
    """A float64 copy, all pairs folded, or one by one if that changes something; as it is if float64 does not run."""
    pairs = _pairs(model, batch)
    exact = double_copy(model)
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
        if is_batchnorm(module) and inputs and id(inputs[0]) in made:
            found.append((made[id(inputs[0])][0], module))
        elif isinstance(output, Tensor):
            made[id(output)] = (module, output)  # held, so that its id is not used again

    layers = [module for module in model.modules() if is_batchnorm(module) or isinstance(module, _LAYERS)]
    handles = [layer.register_forward_hook(watch) for layer in layers]
    try:
        run(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return [
        (paths[layer], paths[norm])
        for layer, norm in found
        if calls[layer] == calls[norm] == 1 and not is_batchnorm(layer)
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
    exact = cast(batch, torch.float64)
    try:
        first, second = (outputs(run_copy(model, exact), []) for model in (one, two))
        return all(_close(a.tensor, b.tensor) for a, b in zip(first, second, strict=True))
    except Exception:  # a forward that fixes float32 may fail in any way; then nothing is proven
        return False


def _close(one: Tensor, two: Tensor) -> bool:
    if not one.numel():
        return one.shape == two.shape
    size = float(one.abs().double().max())
    return one.shape == two.shape and float((one.double() - two.double()).abs().max()) <= FOLD_EXACT * size
