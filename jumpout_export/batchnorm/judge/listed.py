"""Which channels a report lists: all of most models, and of one with very many a share of every layer's."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from jumpout_export.report import BatchNormLayer

# A dozen numbers per channel of these make 3 MB of JSON (5 MB indented), and no plot draws as many.
MOST_LISTED = 20_000
LEAST_LISTED = 16  # per layer, however many layers there are

_LISTS = ("delta", "log_ratio", "delta_se", "log_ratio_se")


def list_some(rows: Sequence[BatchNormLayer]) -> None:
    """Shortens the per-channel lists in place where the layers have more than `MOST_LISTED` channels together.

    Every layer keeps its share of as many. The channels kept are evenly spaced in the order of W, the smallest and the
    largest among them, so that their cloud has the layer's shape. The layer's own numbers were made of all channels.
    """
    total = sum(len(row.delta) for row in rows)
    if total <= MOST_LISTED:
        return
    for row in rows:
        share = max(len(row.delta) * MOST_LISTED // total, LEAST_LISTED)
        if share < len(row.delta):
            _keep(row, _spaced(row, share))


def _spaced(row: BatchNormLayer, share: int) -> list[int]:
    """`share` of the layer's channels by rising W, NaN counting as the largest, in the order of their indices."""
    delta, log_ratio = (torch.tensor(values, dtype=torch.float64) for values in (row.delta, row.log_ratio))
    order = torch.hypot(delta, torch.expm1(log_ratio / 2)).argsort(stable=True)
    ranks = torch.arange(share) * (len(order) - 1) // (share - 1)
    return sorted(order[ranks].tolist())


def _keep(row: BatchNormLayer, channels: list[int]) -> None:
    row.listed = channels
    for name in _LISTS:
        setattr(row, name, [getattr(row, name)[i] for i in channels])
    if row.attribution is not None:
        parts = {name: [values[i] for i in channels] for name, values in row.attribution if values}
        row.attribution = row.attribution.model_copy(update=parts)
