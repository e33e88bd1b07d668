"""The autocast region that code runs in, to be entered again later."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Autocast:
    """Whether autocast is on for one kind of device, and to what it casts."""

    device: str  # torch.device.type
    enabled: bool
    dtype: torch.dtype

    @classmethod
    def now(cls, device: torch.device) -> Autocast:
        """Returns the region that the caller runs in."""
        return cls(device.type, torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type))

    def region(self) -> torch.autocast:
        """Returns a context that is this region; cast weights are not remembered in it."""
        return torch.autocast(self.device, dtype=self.dtype, enabled=self.enabled, cache_enabled=False)
