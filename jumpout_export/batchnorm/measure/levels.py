"""Finds the depth of every BatchNorm in the data flow by running one batch, without tracing the model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from jumpout_export.batchnorm.measure.calls import Calls
from jumpout_export.batchnorm.measure.feed import Feed, PassDoneError, Step
from jumpout_export.batchnorm.measure.layers import Layer
from jumpout_export.batchnorm.measure.states import SERVING, in_state
from jumpout_export.model.randomness import rng_restored, same_bits

# Per layer, what its calls got, condensed so that a batch of activations need not be kept.
Seen = dict[str, list[Tensor]]


def depth_levels(feed: Feed, order: Sequence[Layer]) -> list[list[Layer]]:
    """Returns `order` in groups such that what a layer gets depends on layers of earlier groups only.

    The output of every layer is replaced by fixed noise, and of the layers without a group by other noise. Whose input
    stays the same depends on none of them: these are the next group. So `detach`, checkpoints and operators of one's
    own are seen through, NaN statistics do no harm and no depth lets values explode; it takes one forward per group.

    Where no input stays the same (a layer feeds on itself, the model draws random numbers of its own), or where the
    model cannot run on noise, groups are single layers in call order. A dependence that this one batch does not use
    is missed: the caller has to measure in the end.
    """
    groups: list[list[Layer]] = []

    def visit(step: Step) -> None:
        rest = list(order)
        try:
            fixed = _inputs(step, order, ())
            while rest:
                other = _inputs(step, order, {layer.name for layer in rest})
                free = [layer for layer in rest if _same(fixed, other, layer)]
                groups.append(free or rest[:1])
                rest = [layer for layer in rest if layer not in groups[-1]]
        except Exception:  # whatever the model's own code says to noise; call order needs no such knowledge
            groups.extend([layer] for layer in rest)

    with torch.no_grad(), in_state(feed.model, [], SERVING):
        on_first_step(feed, visit)
    # Another process's batch may take another way; all have to correct the same layers at a time.
    names = feed.ranks.gather([[layer.name for layer in group] for group in groups])[0]
    by_name = {layer.name: layer for layer in order}
    return [[by_name[name] for name in group] for group in names]


def on_first_step(feed: Feed, visit: Callable[[Step], Any]) -> None:
    """Calls `visit` with the first batch of a pass, and with no other."""

    def once(step: Step) -> int:
        visit(step)
        raise PassDoneError

    with contextlib.suppress(PassDoneError):
        feed.replay("running one batch", once)


def _inputs(step: Step, order: Sequence[Layer], other: Collection[str]) -> Seen:
    """What each layer gets while the outputs of all are noise: fixed noise, other noise for the names in `other`."""
    seen: Seen = {}
    # Every layer has noise of its own: the difference of two branches must not cancel.
    seeds = {layer.name: 2 * index + (layer.name in other) for index, layer in enumerate(order)}

    def noise(layer: Layer, like: Tensor) -> Tensor:
        generator = torch.Generator(like.device).manual_seed(seeds[layer.name] << 16 | len(seen.get(layer.name, ())))
        return torch.empty_like(like).normal_(generator=generator)

    def take(layer: Layer, x: Tensor, _: Tensor | None) -> bool | Tensor:
        rest = [dim for dim in range(x.ndim) if dim != 1]
        seen.setdefault(layer.name, []).append(
            torch.stack([y.sum(dim=rest, dtype=torch.float64) for y in (x, x.abs())])
        )
        # A call in the layer's own module is followed by what that makes of it.
        return noise(layer, x) if layer.name in calls.outside else False

    calls = Calls(order, take)
    with contextlib.ExitStack() as hooks, rng_restored():
        hooks.enter_context(calls.hooked())
        for layer in order:
            hooks.enter_context(layer.module.register_forward_hook(partial(_replaced, layer, noise)))
        with calls.forward():
            step.run()
    return seen


def _replaced(layer: Layer, noise: Callable[[Layer, Tensor], Tensor], _: nn.Module, __: Any, output: Tensor) -> Tensor:
    """A hook that replaces what a layer gives."""
    return noise(layer, output)


def _same(first: Seen, second: Seen, layer: Layer) -> bool:
    one, two = first.get(layer.name), second.get(layer.name)
    # NaN made of noise equals NaN made of other noise, which shows nothing.
    return one is not None and same_bits(one, two) and all(bool(torch.isfinite(sums).all()) for sums in one)
