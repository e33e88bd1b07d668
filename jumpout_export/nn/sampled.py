"""What jumpout sampled over many training steps, kept without hooks and without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from jumpout_export.nn.functional import JumpoutStatistics
from jumpout_export.nn.modules import Jumpout

# So many calls are kept as they are, 40 bytes each, before they are added up on the device.
_PENDING = 256


class Sampled:
    """Means over training steps of what one jumpout layer sampled, read from what the layer itself remembers.

    The layer keeps its last call in train mode: of several calls between two `take()`, the last one counts. Nothing is
    attached to the layer, so whatever copies, compiles or saves the model does not meet it.

    Args:
        layer: the layer; calls before now do not count.
    """

    def __init__(self, layer: Jumpout) -> None:
        self._layer = layer
        self._seen = layer._sampled
        self._version = self._seen._version
        self._pending: list[Tensor] = []
        self._sum = self._count = torch.zeros((), dtype=torch.float64)

    def take(self) -> None:
        """Takes the layer's last call, if there was one since the last `take()`."""
        sampled = self._layer._sampled
        if sampled is not self._seen:  # each call of the eager layer leaves a new tensor
            self._seen, self._version = sampled, 0
            self._pending.append(sampled)
        elif not sampled.is_inference() and sampled._version != self._version:  # the compiled one writes into the same
            self._version = sampled._version
            if self._pending and self._pending[-1] is sampled:
                self._pending.pop()  # an eager call's, overwritten by now
            self._pending.append(sampled.clone())
        if len(self._pending) >= _PENDING:
            self._add_up()

    def means(self) -> JumpoutStatistics:
        """Returns the means since the last `means()`, NaN where nothing was sampled; waits for the device.

        The fields are 0-d float64 tensors on the CPU.
        """
        self._add_up()
        means = (self._sum / self._count).cpu().expand(len(JumpoutStatistics._fields))
        self._sum = self._count = torch.zeros((), dtype=torch.float64)
        return JumpoutStatistics(*means.unbind())

    def _add_up(self) -> None:
        if not self._pending:
            return
        device = self._pending[-1].device  # the model may have been moved
        rows = torch.cat([row if row.device == device else row.to(device) for row in self._pending])
        self._pending.clear()
        # A layer that is moved before its first call has a new tensor too, of NaN.
        self._sum = self._sum.to(device) + rows.nansum(dim=0)
        self._count = self._count.to(device) + rows.isfinite().sum(dim=0)
