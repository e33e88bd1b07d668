"""Images that a DistributedSampler repeats, so that every process gets as many."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DistributedSampler


def padding_notes(batches: Any) -> list[str]:
    """Returns a sentence if the sampler of a DataLoader repeats images, most of the time none."""
    batch_sampler = getattr(batches, "batch_sampler", None)
    for sampler in (getattr(batches, "sampler", None), getattr(batch_sampler, "sampler", None)):
        if not isinstance(sampler, DistributedSampler):
            continue
        length = len(sampler.dataset)  # type: ignore[arg-type]
        repeated = sampler.total_size - length
        if repeated > 0:
            note = (
                f"The DistributedSampler repeats {repeated} of {length} images to give all {sampler.num_replicas} "
                "processes as many, and they count twice; pass the sampler drop_last=True, or a plain loader."
            )
            return [note]
    return []
