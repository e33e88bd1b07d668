"""Folds a model: an eval-mode copy in which the stochastic layers are gone, with the proof that it is the same."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from jumpout_export.errors import ArgumentError, NotFoldableError
from jumpout_export.fold.network.audit import allowed
from jumpout_export.fold.network.proof import Folded, fold_with_proof
from jumpout_export.fold.network.replaced import action_of, is_known, layers_of, replaced, reported
from jumpout_export.fold.network.subject import Subject, subject_of
from jumpout_export.model.batches import Batch, device_of
from jumpout_export.model.copies import eval_copy, unlike_attributes
from jumpout_export.model.guard import put_back
from jumpout_export.model.norms import is_batchnorm
from jumpout_export.model.randomness import rng_restored, same_bits
from jumpout_export.model.run import run, run_copy
from jumpout_export.model.signature import example_batch
from jumpout_export.model.stochastic import stochastic_layers
from jumpout_export.model.wrappers import plain_calls
from jumpout_export.report import Check
from jumpout_export.text import joined

STATE_PASSED = Check(name="state", verdict="pass", note="no call in eval mode depends on the calls before it")


def fold_model(model: nn.Module | ExportedProgram, example: Any = None, *, allow: Iterable[str] = ()) -> nn.Module:
    """Returns a copy of the model in eval mode in which every stochastic layer is the identity (or its fused ReLU).

    The model itself is not touched: flags, parameters, buffers and generator states stay as they are. A layer whose
    eval forward is not the identity, such as a dropout that scales by 1 - p in eval mode, stays in the copy.

    Args:
        model: any nn.Module that `copy.deepcopy` can copy, or an exported program. A program from train mode is taken
            in eval mode: dropout of all kinds off, BatchNorm with its running statistics.
        example: a batch (tensor, tuple, dict, or with labels). With it the proof runs on the spot: the folded copy is
            bitwise equal to the eval model, two runs agree bitwise, no random number is drawn and no call depends on
            the calls before it. Without it only layers whose eval forward is known are replaced.
        allow: module paths in which, and below which, random numbers may be drawn; these stay as they are.

    Returns:
        The folded copy, on the model's device.

    Raises:
        NotFoldableError: if the model draws random numbers in eval mode outside of `allow`, if its result depends on
            the calls before, or if a copy of it changes the model itself.
        TypeError: if `model` is neither or cannot be copied, `example` holds something else than tensors, or the
            model returns something else than tensors, numbers and texts.
        ValueError: if `allow` names no module of the model, or the model cannot run `example`.

    Example:
        >>> folded = fold_model(nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.5)), torch.randn(3, 4))
        >>> folded[1]
        Identity()
    """
    return fold(model, example, allow=allow).model


def fold(model: nn.Module | ExportedProgram | Subject, example: Any = None, *, allow: Iterable[str] = ()) -> Folded:
    """Returns what `fold_model` returns, and what became of each stochastic layer."""
    allow = (allow,) if isinstance(allow, str) else tuple(allow)
    subject = subject_of(model)
    with subject.untouched():
        return _fold(subject, example, allow)


def _fold(subject: Subject, example: Any, allow: tuple[str, ...]) -> Folded:
    original = eval_copy(subject.module)
    unknown = [path for path in allow if path not in dict(original.named_modules())]
    if unknown:
        raise ArgumentError("allow", _not_allowed(unknown, [path for path, _ in original.named_modules() if path]))
    _refuse_layers_that_stay_random(original, allow)
    subject.refuse_noise()
    if example is None:
        layers = layers_of(original, allow)
        actions = {layer.path: action_of(layer) if is_known(layer.module) else "keep" for layer in layers}
        folded = Folded(replaced(original, actions, allow), original, reported(layers, actions))
    else:
        batch = example_batch(example, original).to(device_of(original))
        with rng_restored(), torch.no_grad():
            folded = fold_with_proof(original, batch, allow)
            _refuse_other_results(subject.module, original, batch)
    return replace(folded, layers=(*subject.layers, *folded.layers), notes=(*subject.notes, *folded.notes))


def _not_allowed(unknown: Sequence[str], paths: Sequence[str]) -> str:
    close = [path for name in unknown for path in difflib.get_close_matches(name, paths)]
    some = joined([repr(path) for path in close or paths])
    hint = f"did you mean {some}?" if close else f"it has {some or 'none'}"
    return f"allow names no module of the model: {', '.join(map(repr, unknown))}; {hint}"


def _refuse_other_results(model: nn.Module, copied: nn.Module, batch: Batch) -> None:
    """Where a copy lacks anything, such as a logger, only a run of the model itself tells whether it counts."""
    unlike = unlike_attributes(model, copied)
    if not unlike:
        return
    with put_back(model), plain_calls(model):
        own = run(model.eval(), batch)
    if not same_bits(own, run_copy(copied, batch)):
        raise NotFoldableError(
            f"a copy of the model gives other results than the model, and it is what would be exported: it differs in "
            f"{joined(unlike)}; see to it that a copy keeps everything (__deepcopy__, __getstate__ and the like)",
            check="copy",
        )


def _refuse_layers_that_stay_random(model: nn.Module, allow: tuple[str, ...]) -> None:
    """A model whose own `eval()` leaves a dropout or BatchNorm training, as Monte-Carlo dropout does."""
    stochastic = {layer.path for layer in stochastic_layers(model)}
    paths = tuple(
        path
        for path, module in model.named_modules()
        if module.training and (path in stochastic or is_batchnorm(module)) and not allowed(path, allow)
    )
    if paths:
        raise NotFoldableError(
            f"{', '.join(f'`{path}`' for path in paths)} in train mode even after the model's eval(), "
            "so no deterministic graph equals it",
            paths,
        )
