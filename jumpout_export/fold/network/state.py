"""State: what a model's eval forward keeps from one call to the next."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from jumpout_export.model.batches import Batch
from jumpout_export.model.held import GROUPS, changes, comparable, held_values, snapshot
from jumpout_export.model.probes import make_up
from jumpout_export.model.randomness import get_generator_state, is_generator, reseed, rng_restored, same_bits
from jumpout_export.model.run import sharing_copy
from jumpout_export.model.signature import tensors, with_tensors

# A state such as a running maximum or minimum shows only after other values than the example's.
_FACTORS = (4.0, 0.25, 1.0)
# Calls that a state is followed for: as many as the second number while it goes on changing, as a counter does. What
# happens at every hundredth call is not found, but noted.
_FOLLOWED = 8, 32


@dataclass(frozen=True)
class KeptState:
    """What calls in eval mode leave behind."""

    changed: tuple[str, ...]  # names of the parameters, buffers and attributes that they change
    matters: bool  # whether a call's result depends on the calls before it
    # random generators that are held somewhere and draw in every call, name to path of the module
    generators: dict[str, str]
    result: Any  # of the first call
    changes_parameters: bool  # whether one of `changed` is a parameter
    repeats: bool  # whether a later call with other seeds has the bits of the first


def kept_state(model: nn.Module, batch: Batch, run: Callable[[nn.Module, Batch], Any]) -> KeptState:
    """Returns what calls of a model in eval mode change in it, and whether the first call's bits return after others.

    Only copies of the model are run; `run` raises if it cannot run the batch.
    """
    fresh = copy.deepcopy(model)
    # Parameters are large, and hardly ever changed: the copies share them, and whether that was right is seen at once.
    found = _followed(fresh, sharing_copy(fresh), batch, run, parameters=False)
    mine, other = dict(model.named_parameters()), dict(fresh.named_parameters())
    known = [name for name in mine if comparable(mine[name])]
    if mine.keys() == other.keys() and all(same_bits(mine[name], other[name]) for name in known):
        return found
    fresh, used = copy.deepcopy(model), copy.deepcopy(model)
    found = _followed(fresh, used, batch, run, parameters=True)
    return replace(found, changes_parameters=True)


def _followed(
    fresh: nn.Module, used: nn.Module, batch: Batch, run: Callable[[nn.Module, Batch], Any], *, parameters: bool
) -> KeptState:
    look = functools.partial(snapshot, held=True, parameters=parameters)
    # Of the copies: a module that pickles itself in its own way, such as einops' Rearrange, comes back in train mode.
    before, before_used = look(fresh), look(used)
    with torch.no_grad():
        with rng_restored():
            first = run(fresh, batch)
        for factor in _FACTORS:
            # Other values may be none that the model takes, such as a probability of 4.
            with rng_restored(), contextlib.suppress(Exception):
                run(used, _other(batch, factor))
        now = look(used)
        names = dict.fromkeys([*changes(before, look(fresh)), *changes(before_used, now)])
        same = repeats = True
        drew: dict[str, str] = {}
        for call in range(_FOLLOWED[1]):
            generators = generator_snapshot(used)
            with rng_restored():
                if call == 0:  # with other seeds: where neither they nor the calls before matter, one call shows both
                    reseed()
                agrees = same_bits(first, run(used, batch))
            if call == 0:
                repeats = agrees
            else:
                same = same and agrees
            # Only what moves from call to call: a generator that every call seeds anew gives the same each time.
            drew |= moved(generators, generator_snapshot(used))
            earlier, now = now, look(used)
            names |= dict.fromkeys(found := changes(earlier, now))
            shown = repeats or call > 0
            if shown and (not same or not names or (call + 1 >= _FOLLOWED[0] and not found)):
                break
    return KeptState(tuple(names), not same, drew, first, repeats=repeats, changes_parameters=False)


def _other(batch: Batch, factor: float) -> Batch:
    drawn = tensors(make_up(batch, batch.size, torch.Generator().manual_seed(0)))
    return with_tensors(batch, [value * factor if value.is_floating_point() else value for value in drawn])


def generator_snapshot(model: nn.Module) -> dict[str, tuple[str, Any]]:
    """Returns the states of the random generators that modules hold: name to (path of the module, state)."""
    found: dict[str, tuple[str, Any]] = {}
    seen: dict[int, Any] = {}
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            name = f"{path}.{key}" if path else key
            for place, leaf in () if key in GROUPS else held_values(name, value, seen):
                if is_generator(leaf):
                    found[place] = path, get_generator_state(leaf)
    return found


def moved(before: dict[str, tuple[str, Any]], after: dict[str, tuple[str, Any]]) -> dict[str, str]:
    """Returns the generators whose states differ, name to path of the module; a generator that is new does not."""
    return {
        name: path
        for name, (path, state) in before.items()
        if name in after and not same_bits(_hashable(state), _hashable(after[name][1]))
    }


def _hashable(state: Any) -> Any:
    """NumPy's states hold arrays, which have no single truth."""
    if isinstance(state, Tensor):
        return state
    leaves = torch.utils._pytree.tree_leaves(state)
    return repr([leaf.tobytes() if hasattr(leaf, "tobytes") else leaf for leaf in leaves])
