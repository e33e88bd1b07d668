"""A closer look at the served model on one batch: does it draw random numbers, does its output depend on the batch?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from jumpout_export.batchnorm.measure.feed import Feed
from jumpout_export.batchnorm.measure.layers import Layer
from jumpout_export.batchnorm.measure.states import SERVING, in_state
from jumpout_export.model.batch_statistics import other_batch_norms
from jumpout_export.model.held import comparable_parts
from jumpout_export.model.randomness import random_calls, repeated, rng_restored, same_bits
from jumpout_export.model.tracing import Call
from jumpout_export.model.wrappers import plain_calls, plain_names
from jumpout_export.text import joined

# Calls named in one sentence; a network with noise in every block would fill the page.
MOST_CALLS = 5


def first_batch_notes(feed: Feed, layers: Sequence[Layer]) -> list[str]:
    """Returns sentences on what the served model does that its stored statistics cannot stand for, mostly none.

    * Random numbers drawn in eval mode, by operator, module and source line; or two forwards that differ although
      nothing was seen to draw. What was measured then is the noisy network.
    * What it returns that cannot be compared: objects without a tensor in them.
    * `batch_norm` with `training=True` outside of `layers`: the output depends on the batch.
    * `batch_norm` with stored statistics of no layer, which nothing was compared with.

    The first batch of the last pass runs twice, and twice more if the outputs differ for no reason that was seen.
    """
    if feed.first is None:
        return []
    run = feed.first.run
    names = plain_names(feed.model)
    known = {path for layer in layers for path in layer.paths}
    size = feed.first.size
    own = [buffer for layer in layers if layer.tracked for buffer in layer.statistics()]
    normalising: list[Call] = []
    by_stored: list[Call] = []
    outputs: list[Any] = []
    unknown: list[str] = []

    def parts() -> list[Any]:
        found, unknown[:] = comparable_parts(run())
        return found

    def forward() -> None:
        by_batch, others = other_batch_norms(feed.model, lambda: outputs.append(parts()), known, own, size)
        normalising.extend(by_batch)
        by_stored.extend(others)

    with torch.no_grad(), in_state(feed.model, layers, SERVING), plain_calls(feed.model), rng_restored():
        random = random_calls(feed.model, forward)
        # Calls are watched by other code paths of torch than usual: only two usual runs tell whether runs differ.
        hidden = not random and not same_bits(outputs[0], parts()) and not repeated(parts, other_seed=True)[1]
    notes = []
    if random:
        notes.append(
            f"The model draws random numbers in eval mode: {_listed(random, names)}. What was measured is the network "
            "with this noise; no two answers of it agree."
        )
    if hidden:
        notes.append(
            "Two forwards of the same batch in eval mode differ, although no generator of torch, NumPy or Python was "
            "used: the model draws from a generator of its own, keeps state between calls, or uses a kernel that is "
            "not deterministic."
        )
    if unknown:
        notes.append(
            f"What the model returns holds {joined(unknown)}, in which no tensor was found that could be compared "
            "between two forwards."
        )
    if normalising:
        notes.append(
            "The model normalises by the statistics of the batch in eval mode, so its output depends on the batch it "
            f"is served in: {_listed(normalising, names)}. Pass training=False and running statistics there."
        )
    if by_stored:
        notes.append(
            "Stored statistics of no BatchNorm layer are used, and were not compared with anything: "
            f"{_listed(by_stored, names)}. Keep them in a BatchNorm, so that they are checked and recalibrated."
        )
    return notes


def _listed(calls: Sequence[Call], names: dict[str, str]) -> str:
    shown = [str(replace(call, module=names.get(call.module, call.module))) for call in calls[:MOST_CALLS]]
    more = [f"{len(calls) - MOST_CALLS} more"] if len(calls) > MOST_CALLS else []
    return "; ".join(shown + more)
