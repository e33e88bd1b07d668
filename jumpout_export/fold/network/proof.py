"""The proof that a folded copy is the eval model: bit for bit, without a random number, whatever was called before."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jumpout_export.errors import NotFoldableError
from jumpout_export.fold.network.audit import allowed, refuse_randomness
from jumpout_export.fold.network.identity import not_identity, watch
from jumpout_export.fold.network.replaced import action_of, is_known, layers_of, replaced, reported
from jumpout_export.fold.network.state import kept_state
from jumpout_export.model.batches import Batch
from jumpout_export.model.randomness import generator_states, moved_generators, reseed, rng_restored, same_bits
from jumpout_export.model.run import call, sharing_copy
from jumpout_export.report import FoldedLayer
from jumpout_export.text import first_line, joined

_RESULTS = (Tensor, bool, int, float, complex, str, bytes, type(None))


@dataclass(frozen=True)
class Folded:
    """A folded copy and what became of each stochastic layer."""

    model: nn.Module  # the folded copy
    original: nn.Module  # a copy in eval mode in which nothing was replaced, to compare with
    layers: tuple[FoldedLayer, ...]  # what became of each stochastic layer
    notes: tuple[str, ...] = ()  # sentences on what stays, and on state that has no effect


def fold_with_proof(original: nn.Module, batch: Batch, allow: tuple[str, ...]) -> Folded:
    """Only copies of `original` are run, so that no state of a run reaches what is returned."""
    state = kept_state(original, batch, _run)
    kept = joined(list(state.changed)) or "something outside of its parameters, buffers and plain attributes"
    message = f"the model keeps a state in eval mode on which its result depends: {kept}; set it in train mode only"
    if state.matters and state.changed:
        raise NotFoldableError(message, check="state")
    notes = [f"a call in eval mode changes {kept}, without an effect on the result"] if state.changed else []

    copied = copy.deepcopy if state.changes_parameters else sharing_copy
    audited = copied(original).eval()
    layers = layers_of(audited, allow)
    seen: dict[str, list[Tensor] | None] = {}
    handles = [watch(layer, seen) for layer in layers if not is_known(layer.module)]
    try:
        known = state.result, state.repeats
        expected = refuse_randomness(audited, lambda: _run(audited, batch), allow, known=known)
    finally:
        for handle in handles:
            handle.remove()
    drawn = {name: path for name, path in state.generators.items() if not allowed(path, allow)}
    if drawn:
        names = joined([f"`{name}`" for name in drawn])
        raise NotFoldableError(
            f"the model draws random numbers in eval mode, from a generator that it holds: {names}; draw them only "
            "under `if self.training:`",
            tuple(dict.fromkeys(drawn.values())),
        )
    if state.matters and not allow:
        raise NotFoldableError(message, check="state")
    actions = {}
    idle = [layer for layer in layers if not is_known(layer.module) and layer.path not in seen]
    for layer in layers:
        if layer in idle:
            actions[layer.path] = "keep"
            continue
        problem = "" if is_known(layer.module) else not_identity(layer, seen[layer.path])
        actions[layer.path] = "keep" if problem else action_of(layer)
        if action_of(layer) != actions[layer.path]:
            notes.append(f"`{layer.path}` ({layer.kind}) {problem}; it stays, in eval mode")
    if unreached := joined([f"`{layer.path}` ({layer.kind})" for layer in idle if layer.action != "keep"]):
        notes.append(f"stays, in eval mode, because the example does not reach it: {unreached}")
    folded = replaced(original, actions, allow)
    same = state.repeats and _repeats(copied(folded), batch, expected)
    problem = "" if same else _difference(copied(folded), batch, expected, allow)
    if not problem:
        return Folded(folded, original, reported(layers, actions), tuple(notes))
    # For example a forward that reads `self.drop.p`. The eval model itself was proven deterministic above.
    notes.append(f"the stochastic layers stay, in eval mode, because without them {problem}")
    return Folded(copy.deepcopy(original), original, reported(layers, dict.fromkeys(actions, "keep")), tuple(notes))


def _run(model: nn.Module, batch: Batch) -> Any:
    try:
        result = call(model, batch)
    except Exception as error:
        raise ValueError(f"the model cannot run the example: {type(error).__name__}: {first_line(error)}") from error
    for leaf in torch.utils._pytree.tree_leaves(result):
        if not isinstance(leaf, _RESULTS):  # two of them cannot be compared, and would look like noise
            raise TypeError(
                f"the model must return tensors, numbers and texts, or these in lists and dicts, got "
                f"{type(leaf).__module__}.{type(leaf).__name__}; wrap the model in a module that returns the tensors"
            )
    return result


def _repeats(folded: nn.Module, batch: Batch, expected: Any) -> bool:
    """Whether the folded copy draws nothing and gives, with other seeds, what the eval model gives."""
    with rng_restored(), torch.no_grad():
        reseed()
        before = generator_states()
        try:
            result = call(folded, batch)
        except Exception:  # a user's forward may raise anything; `_difference` says what
            return False
        return not moved_generators(before) and same_bits(expected, result)


def _difference(folded: nn.Module, batch: Batch, expected: Any, allow: tuple[str, ...]) -> str:
    """What differs between the folded copy and the eval model's result; empty if nothing does."""
    try:
        result = refuse_randomness(folded, lambda: call(folded, batch), allow)
    except Exception as error:  # a user's forward may raise anything; the reason is reported
        return f"the model fails with {type(error).__name__}: {first_line(error)}"
    return "" if same_bits(expected, result) else "the result differs"
