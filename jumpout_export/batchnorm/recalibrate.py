"""Replaces stored BatchNorm statistics by those that serving sees, all or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import torch
from torch import nn

from jumpout_export.batchnorm.feed import Feed, ForwardFn
from jumpout_export.batchnorm.layers import batchnorm_layers, select_layers
from jumpout_export.batchnorm.solve import Corrected, Solution, current, solve_batch, solve_exact
from jumpout_export.nn.batches import Progress

Method = Literal["exact", "batch", "variance"]


def recalibrate_batchnorm(
    model: nn.Module,
    batches: Iterable[Any],
    method: Method = "exact",
    *,
    images: int | None = None,
    layers: Iterable[str] | None = None,
    forward_fn: ForwardFn | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> Callable[[], None]:
    """Replaces the running statistics of `model` in place and returns a function that restores them bitwise.

    Only `running_mean` and `running_var` change, and only once everything is known: after any exception, Ctrl-C
    included, the model is bitwise what it was. Dropout and jumpout are off throughout. The variance is the unbiased
    v n / (n - 1) with n = images x pixels, as training stores it.

    Args:
        model: a model with BatchNorm layers, in any mode; flags are left as they are.
        batches: a list or DataLoader of batches (tensor, tuple, list or dict), at most one pass per layer is made.
        method: `exact`: the statistics every layer sees when all are in use, independent of order and batch size (to
            rounding). `batch`: one pass in which the layers normalise by batch statistics, the usual recipe.
            `variance`: the same pass, but only `running_var` is replaced (Hendrycks & Gimpel 2016).
        images: a pass ends with the batch that reaches this many images; None for all.
        layers: names of the layers to change; None for all that are not frozen. Layers that the forward does not
            reach are left alone.
        forward_fn: `forward_fn(model, batch)` replaces the call; it gets the batch as the loader yields it.
        device: where batches go; None: where the model's first parameter is.
        progress: called as `progress(what, images done, images in all or None)`.

    Returns:
        `undo()`, which puts back the statistics from before.

    Raises:
        ValueError: if there is nothing to change, the method or a layer's name is unknown, a named layer is not
            reached or stores no statistics, `batches` is empty or a one-shot iterator, or the data make a layer's
            statistics NaN or infinite.
        TypeError: if `batches` or a batch is of the wrong type.

    Example:
        >>> undo = recalibrate_batchnorm(model, loader)
        >>> undo()
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(map(repr, get_args(Method)))}, got {method!r}")
    names = list(layers) if layers is not None and not isinstance(layers, str) else layers
    chosen = select_layers(batchnorm_layers(model), names)
    feed = Feed(model, batches, images=images, forward_fn=forward_fn, device=device, progress=progress)
    solution = solve_exact(feed, chosen) if method == "exact" else solve_batch(feed, chosen)
    reached = {new.layer.name for new in solution.corrected}
    missed = [layer.label for layer in chosen if layer.name not in reached]
    if names is not None and missed:
        raise ValueError(f"the forward pass did not reach {', '.join(missed)}; nothing was written")
    return _write(solution, keep_mean=method == "variance")


def _write(solution: Solution, *, keep_mean: bool) -> Callable[[], None]:
    before = [current(new.layer) for new in solution.corrected]

    def undo() -> None:
        for old in before:
            old.put()

    try:
        for old, new in zip(before, solution.corrected, strict=True):
            Corrected(new.layer, old.mean if keep_mean else new.mean, new.var).put()
    except BaseException:
        undo()
        raise
    return undo
