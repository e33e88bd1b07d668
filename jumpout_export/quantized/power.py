"""How large a signal is against the noise of rounding, over all values of a tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from jumpout_export.effect.paired import PairedChange
from jumpout_export.onnxfile.constants import Array


@dataclass
class Power:
    """Sums over all values of a tensor."""

    signal: float = 0.0  # squares of the float values
    noise: float = 0.0  # squares of the differences
    values: int = 0
    clipped: int = 0  # of them, beyond the range
    _shares: PairedChange = field(default_factory=PairedChange)

    def add(self, exact: Array, rounded: Array) -> None:
        """Takes a tensor without and with rounding."""
        exact = exact.astype(np.float64)
        self.signal += float(np.square(exact).sum())
        self.noise += float(np.square(exact - rounded).sum())

    def add_clipped(self, beyond: Array, samples: int) -> None:
        """Takes which values of a tensor lie beyond its range; its first axis is the samples if it is as long."""
        rows = beyond.reshape(samples if beyond.ndim and len(beyond) == samples else 1, -1)
        self.values += rows.size
        self.clipped += int(rows.sum())
        counts = torch.full((len(rows),), float(rows.shape[1]), dtype=torch.float64)
        self._shares.add(torch.from_numpy(rows.sum(axis=1)).double(), counts)

    @property
    def clipped_least(self) -> float:
        """The lower end of the 95% interval of the clipped share, samples as the unit; 0 for a single sample."""
        interval = self._shares.interval() if self.values else None
        return 0.0 if interval is None else max(0.0, interval[0])

    @property
    def noise_to_signal(self) -> float:
        """The RMS noise in units of the RMS signal; infinite for noise without signal."""
        if self.noise == 0:
            return 0.0
        return math.sqrt(self.noise / self.signal) if self.signal else math.inf

    @property
    def sqnr(self) -> float:
        """Signal to quantization noise in dB, infinite without noise."""
        return decibels(self.noise_to_signal)

    @property
    def clipped_share(self) -> float:
        """Share of the values beyond the range."""
        return self.clipped / max(self.values, 1)


def decibels(noise_to_signal: float) -> float:
    """Returns the signal to noise in dB of a noise in units of the signal."""
    if noise_to_signal == 0:
        return math.inf
    return -math.inf if math.isinf(noise_to_signal) else -20 * math.log10(noise_to_signal)
