"""Checks one model on several sets of samples: domains, sites, last month's production samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from torch import nn

from jumpout_export.batchnorm.check import check_batchnorm
from jumpout_export.batchnorm.measure.distributed import Ranks
from jumpout_export.batchnorm.measure.feed import Feed
from jumpout_export.batchnorm.measure.layers import batchnorm_layers
from jumpout_export.batchnorm.reference import Reference, measure_reference
from jumpout_export.errors import ArgumentError
from jumpout_export.model.guard import put_back
from jumpout_export.report import BatchNormSetsReport

# What a reference is measured by, of what a check is given.
_SHARED = ("samples", "forward_fn", "device", "progress", "weigh_by", "groups")


def check_batchnorm_sets(
    model: nn.Module,
    sets: Mapping[str, Iterable[Any]],
    *,
    reference: Iterable[Any] | Reference | None = None,
    **options: Any,
) -> BatchNormSetsReport:
    """Returns the check of `model` on each set of samples, so that they stand side by side.

    Args:
        model: as in `check_batchnorm`.
        sets: batches by the name of their set, at least one.
        reference: batches of training, measured once for all sets.
        options: what else `check_batchnorm` takes, the same for every set.

    Raises:
        ArgumentError: if there is no set.
        ValueError: as `check_batchnorm`.
        TypeError: as `check_batchnorm`.

    Example:
        >>> report = check_batchnorm_sets(model, {"day": day, "night": night}, reference=training)
        >>> {name: check.verdict for name, check in report.sets.items()}
    """
    if not isinstance(sets, Mapping) or not sets:
        raise ArgumentError("sets", f"must be a dict of at least one set of batches by name, got {type(sets).__name__}")
    if reference is not None and not isinstance(reference, Reference):
        ranks, layers = Ranks(options.get("process_group")), batchnorm_layers(model)
        how = {"samples": 4096} | {name: options[name] for name in _SHARED if name in options}
        with ranks.buffers_as_served(model), put_back(model):
            feed_of = partial(Feed, model, ranks=ranks, **how)
            reference = measure_reference(feed_of, reference, layers, options.get("training_batch_size"))
    checks = {name: check_batchnorm(model, batches, reference=reference, **options) for name, batches in sets.items()}
    return BatchNormSetsReport(sets=checks)
