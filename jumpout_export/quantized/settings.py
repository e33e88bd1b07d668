"""What a quantized file may cost: the limits that a user states, and why the defaults are what they are.

A value rounded to 256 steps of a range of 2 * c standard deviations has a signal to noise of 52.9 - 20 log10(c) dB
(the noise of a step s is s / sqrt(12)): 41 dB for c = 4, 33 dB for c = 10. Noise of n independent roundings adds up, so
that after 50 layers, each of which rounds its weights and its result, 20 dB less are left: 13 to 21 dB. The default of
10 dB, noise of a third of the signal, is below that; a weight whose scale is twice what it should be has noise as large
as its signal, 0 dB. Measured on healthy files (MinMax ranges, scales per channel): docs/how-to/quantize.md.

A value is clipped if it lies beyond the range by more than a twentieth of it. Ranges from the smallest and largest
value clip nothing on the samples that they were taken from, a percentile of 99.9 a thousandth; the default lets a
hundredth be clipped. A range of two standard deviations to either side, half of what it should be, clips 3% of a normal
tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jumpout_export.errors import ArgumentError, ArgumentTypeError

MIN_SQNR = 10.0
MAX_CLIPPED = 0.01
TOP1_MARGIN = 0.01
NLL_MARGIN = 0.05


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """The limits by which a quantized file is judged.

    Attributes:
        min_sqnr: the smallest signal to quantization noise of a tensor or output, in dB.
        max_clipped: the largest share of a tensor's values that lie beyond its range, in [0, 1].
        top1_margin: the largest fall of top-1 accuracy, in [0, 1]; 0.01 is one percentage point.
        nll_margin: the largest rise of the mean negative log likelihood, in nats.
        accuracy: whether accuracy and likelihood are judged, which needs labels; False for a model that is no
            classifier, of which signal to noise alone is judged.
    """

    min_sqnr: float = MIN_SQNR
    max_clipped: float = MAX_CLIPPED
    top1_margin: float = TOP1_MARGIN
    nll_margin: float = NLL_MARGIN
    accuracy: bool = True

    def __post_init__(self) -> None:
        """Checks the limits.

        Raises:
            ValueError: if one is out of its range.
        """
        shares = {"max_clipped": self.max_clipped, "top1_margin": self.top1_margin}
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise ArgumentError(name, f"{name} must be a share in [0, 1], got {value:g}; 0.01 is one in a hundred")
        if not (math.isfinite(self.nll_margin) and self.nll_margin >= 0):
            raise ArgumentError("nll_margin", f"nll_margin must be at least 0 nats, got {self.nll_margin:g}")
        if not math.isfinite(self.min_sqnr):
            raise ArgumentError("min_sqnr", f"min_sqnr must be a number of dB, got {self.min_sqnr:g}")

    @property
    def most_noise(self) -> float:
        """The largest noise in units of the signal, of which `min_sqnr` is 20 log10 of the inverse."""
        return float(10 ** (-self.min_sqnr / 20))


def limits_of(quantized: bool | Quantized) -> Quantized | None:
    """Returns the limits that `quantized=` of a function asks for, None for none.

    Raises:
        TypeError: if it is something else.
    """
    if isinstance(quantized, bool):
        return Quantized() if quantized else None
    if isinstance(quantized, Quantized):
        return quantized
    raise ArgumentTypeError(
        "quantized", f"quantized must be True, False or Quantized(...) with limits, got {type(quantized).__name__}"
    )
