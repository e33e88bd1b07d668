"""How far ONNX Runtime may be from PyTorch, and why that far.

The reference is the folded model in float64. torch's own float32 result is off from it too, by an error that the
model itself makes: it grows with depth and with cancellation, from 1e-7 to 1e-4 and more, so no fixed tolerance is
right for two models. ONNX Runtime passes if, per output,

    max |ort - reference| <= FACTOR * max |torch - reference| + FLOOR * eps * max |reference|

with eps of the output's dtype and the maxima over all images compared. Measured on 19 networks (MLPs with 1 to 20
layers with and without BatchNorm, ResNets, LSTM, Transformer, U-Net, GroupNorm, softmax, tanh, GELU, softplus, and one
that cancels 1000 - 1000), 3 seeds, batch sizes 1, 2, 7 and 64, both optimization levels: ONNX Runtime's error is up to
4.1 times torch's, mostly below 2, and the excess over 4 times it is at most 0.04 eps * scale. FLOOR covers what
torch's own error does not show, such as a layer that torch happens to round exactly; 16 eps is 2e-6 of the largest
output in float32.
"""

from __future__ import annotations

import torch

FACTOR = 4.0
FLOOR = 16.0
# Of the largest output, where the model cannot run in float64 and torch's own error is not known: the largest error
# measured above is 6e-5 (the network that cancels), without it 3e-5 (20 layers).
WITHOUT_REFERENCE = 1e-4


def error_limit(own_error: float, scale: float, dtype: torch.dtype, has_reference: bool) -> float:
    """Returns the largest allowed absolute error of one output.

    Args:
        own_error: max |torch - reference|.
        scale: max |reference|.
        dtype: of the output; exact for integers and booleans.
        has_reference: whether the reference is float64.
    """
    if not dtype.is_floating_point:
        return 0.0
    eps = torch.finfo(dtype).eps
    if not has_reference:
        return max(WITHOUT_REFERENCE, FLOOR * eps) * scale
    return FACTOR * own_error + FLOOR * eps * scale


def describe_budget(has_reference: bool = True) -> str:
    """Returns the limit as one line, for reports and provenance."""
    if has_reference:
        return f"{FACTOR:g} x torch's own error against float64 + {FLOOR:g} eps x largest output"
    return f"{WITHOUT_REFERENCE:g} x largest output (the model does not run in float64)"
