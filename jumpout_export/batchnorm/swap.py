"""Other statistics in a model for a while, and the buffers bitwise back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from jumpout_export.batchnorm.measure.held import hold
from jumpout_export.batchnorm.measure.layers import Layer
from jumpout_export.batchnorm.solve import Solution
from jumpout_export.model.randomness import same_bits
from jumpout_export.text import joined


@contextlib.contextmanager
def swapped(solution: Solution) -> Iterator[None]:
    """Puts the statistics into the layers, and the buffers back to what they were, after an exception too.

    Raises:
        RuntimeError: at the end, if somebody else wrote into the buffers meanwhile, as a training step does.
    """
    layers = [new.layer for new in solution.corrected]
    found = [_Buffers(layer) for layer in layers]
    try:
        put(solution)
        own = [_Buffers(layer) for layer in layers]
        yield
        changed = [buffers.layer.label for buffers in own if buffers.changed()]
    finally:
        _restore(found)
    if changed:
        raise RuntimeError(
            f"the statistics of {joined(changed)} were changed inside `with serving()`: a training step, a forward in "
            "training mode, or weights that were loaded; the buffers are as they were before the `with`, so leave it "
            "before training goes on"
        )


def put(solution: Solution) -> None:
    """Writes the statistics for good, and notes of how many samples they are the average."""
    for new in solution.corrected:
        new.put()
        hold(new.layer, solution.samples)


def _restore(found: list[_Buffers]) -> None:
    try:
        for buffers in found:
            buffers.restore()
    except BaseException:  # Ctrl-C in the middle: first all of them
        for buffers in found:
            buffers.restore()
        raise


class _Buffers:
    """The buffers of one layer as they are now."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        own: dict[str, Tensor | None] = layer.module._buffers
        self._saved = [(name, buffer, buffer.clone()) for name, buffer in own.items() if buffer is not None]

    def changed(self) -> bool:
        """Whether something was written into them; a model that was cast or moved has others."""
        own = self.layer.module._buffers
        return any(own.get(name) is buffer and not same_bits(buffer, saved) for name, buffer, saved in self._saved)

    def restore(self) -> None:
        """Puts objects and values back."""
        own = self.layer.module._buffers
        with torch.no_grad():
            for name, buffer, saved in self._saved:
                now = own.get(name)
                if now is None or now.device == buffer.device:  # else the model was moved, and stays where it is
                    own[name] = buffer
                own[name].copy_(saved)
