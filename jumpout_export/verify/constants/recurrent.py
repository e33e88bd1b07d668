"""The weights of recurrent layers as ONNX's operators take them: gates in another order, directions stacked.

PyTorch has the gates of an LSTM as input, forget, cell, output and those of a GRU as reset, update, new; ONNX as input,
output, forget, cell and as update, reset, hidden. Both biases lie in one constant there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import numpy as np
from torch import Tensor, nn

from jumpout_export.onnxfile.constants import Array

# The place in PyTorch's order of each gate in ONNX's, by the number of gates: LSTM, GRU, plain.
_ORDERS = {4: (0, 3, 1, 2), 3: (1, 0, 2), 1: (0,)}
_KINDS = (("weight_ih",), ("weight_hh",), ("weight_hr",), ("bias_ih", "bias_hh"), ("bias_ih",), ("bias_hh",))


def recurrent_forms(model: nn.Module) -> Iterator[tuple[Array, tuple[str, ...]]]:
    """Yields the constants that ONNX has for recurrent layers, each with the names of the weights that are in it.

    The layers are known by the names that `nn.RNNBase` gives their weights, which an exported program has, too.
    """
    weights = dict(model.named_parameters())
    for name, weight in weights.items():
        match = re.fullmatch(r"((?:.*\.)?)weight_hh(_l\d+)", name)
        if match is None or weight.ndim != 2:
            continue
        prefix, layer = match.groups()
        projected = f"{prefix}weight_hr{layer}" in weights  # of an LSTM alone
        order = _ORDERS.get(4 if projected else weight.shape[0] // max(weight.shape[1], 1))
        if order is not None and weight.shape[0] % len(order) == 0:
            yield from _layer(weights, prefix, layer, order)


def _layer(
    weights: Mapping[str, Tensor], prefix: str, layer: str, order: tuple[int, ...]
) -> Iterator[tuple[Array, tuple[str, ...]]]:
    ends = [end for end in (layer, f"{layer}_reverse") if f"{prefix}weight_hh{end}" in weights]
    for kinds in _KINDS:
        names = [tuple(prefix + kind + end for kind in kinds) for end in ends]
        if any(name not in weights for both in names for name in both):
            continue  # without biases or projections, or the weights are made of others
        moved = order if kinds != ("weight_hr",) else (0,)
        forms = [np.concatenate([_reordered(weights[name], moved) for name in both]) for both in names]
        yield from zip(forms, names, strict=True)
        if len(forms) > 1:
            yield np.stack(forms), tuple(name for both in names for name in both)


def _reordered(weight: Tensor, order: tuple[int, ...]) -> Array:
    gates = np.split(weight.detach().numpy(force=True), len(order))
    return np.concatenate([gates[place] for place in order])
