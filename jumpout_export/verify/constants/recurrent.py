"""The weights of recurrent layers as ONNX's operators take them: gates in another order, directions stacked.

PyTorch has the gates of an LSTM as input, forget, cell, output and those of a GRU as reset, update, new; ONNX as input,
output, forget, cell and as update, reset, hidden. Both biases lie in one constant there.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor, nn

from jumpout_export.onnxfile.constants import Array

# The place in PyTorch's order of each gate in ONNX's.
_ORDERS = {nn.LSTM: (0, 3, 1, 2), nn.GRU: (1, 0, 2), nn.RNN: (0,)}


def recurrent_forms(model: nn.Module) -> Iterator[tuple[Array, tuple[str, ...]]]:
    """Yields the constants that ONNX has for recurrent layers, each with the names of the weights that are in it."""
    for path, module in model.named_modules():
        order = next((order for kind, order in _ORDERS.items() if isinstance(module, kind)), None)
        if order is not None and isinstance(module, nn.RNNBase):
            for layer in range(module.num_layers):
                yield from _layer(module, layer, f"{path}." if path else "", order)


def _layer(
    module: nn.RNNBase, layer: int, prefix: str, order: tuple[int, ...]
) -> Iterator[tuple[Array, tuple[str, ...]]]:
    ends = [f"_l{layer}", f"_l{layer}_reverse"] if module.bidirectional else [f"_l{layer}"]
    weights = dict(module.named_parameters(recurse=False))
    for kinds in (("weight_ih",), ("weight_hh",), ("weight_hr",), ("bias_ih", "bias_hh"), ("bias_ih",), ("bias_hh",)):
        names = [[kind + end for kind in kinds] for end in ends]
        if any(name not in weights for both in names for name in both):
            continue  # without biases or projections, or the weights are made of others
        moved = order if kinds != ("weight_hr",) else (0,)
        forms = [np.concatenate([_reordered(weights[name], moved) for name in both]) for both in names]
        for form, both in zip(forms, names, strict=True):
            yield form, tuple(prefix + name for name in both)
        if len(forms) > 1:
            yield np.stack(forms), tuple(prefix + name for both in names for name in both)


def _reordered(weight: Tensor, order: tuple[int, ...]) -> Array:
    gates = np.split(weight.detach().numpy(force=True), len(order))
    return np.concatenate([gates[place] for place in order])
