"""Tells the inputs in a batch from the labels: the signature of `forward` decides.

A required parameter is always an input. An optional one takes an entry by its key, or by position where its name says
what it is. What is left over is no input, and integers (N,) among it are the labels. Anything else is an error.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from inspect import Parameter
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

LABELS = ("labels", "label", "targets", "target")
# What loaders call the input of a model that calls it something else.
_INPUTS = ("inputs", "input", "images", "image", "img", "pixel_values", "data", "x")
# Names that say what an optional parameter takes: more than one number per sample, as no class label is, or one.
_LARGER = re.compile(
    r"mask|hidden|state|memory|embed|cache|past_|pixel|(token_type|position|input)_ids|^[hc]_?[0x]$|^(image|input)s?$"
)
_PER_SAMPLE = re.compile(r"^(?!max|min).*len(gth)?s?(_|$)")
_SETTING = re.compile(r"^(?!.*(tensor|any)).*\b(bool|int|float|str)\b")  # as annotation

# Positional inputs, keyword inputs, and (N,) class labels or None.
Split = tuple[tuple[Any, ...], dict[str, Any], Tensor | None]
Parameters = Mapping[str, Parameter]

POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_ARGS, _KEY, _KWARGS = Parameter.VAR_POSITIONAL, Parameter.KEYWORD_ONLY, Parameter.VAR_KEYWORD


def by_position(entries: tuple[Any, ...], forward: Parameters) -> Split:
    """Splits a batch whose entries have an order.

    Raises:
        TypeError: if an entry may be an input or none.
    """
    if _is_group(entries, forward):
        count, entries = len(entries[0]), (*entries[0], *entries[1:])
    else:
        count = _inputs(entries, forward)
    inputs, rest = entries[:count], entries[count:]
    labels = labels_among(rest)
    if count == 1 and isinstance(inputs[0], Mapping):
        args, kwargs, inner = by_name(dict(inputs[0]), forward)
        return args, kwargs, inner if labels is None else labels
    return inputs, {}, labels


def by_name(entries: dict[str, Any], forward: Parameters) -> Split:
    """Splits a batch whose entries have names; a `forward` that takes a dict gets them as one.

    Raises:
        TypeError: if the names do not say which entries are inputs.
    """
    places = list(forward.values())
    taken = {key: value for key, value in entries.items() if key in forward and not _is_label(forward[key])}
    keys = [key for key in (*LABELS, "y") if key in entries and key not in taken]
    labels = _classes(entries[keys[0]]) if keys else None
    rest = {key: value for key, value in entries.items() if key not in (*taken, *keys)}
    name = None
    if not taken and places and places[0].kind is not _KWARGS:
        name, first = _only_input(rest), places.pop(0)
        if first.kind in POSITIONAL and (_says(first, "dict", "mapping") or not (name or places)):
            return (rest,), {}, labels
    if any(place.kind is _KWARGS for place in places) and (name is None or len(rest) > 1):
        return (), taken | rest, labels
    args = () if name is None else (rest.pop(name),)
    free = [place for place in places if place.name not in taken]
    for key, value in rest.items():
        if not (taken or args) or any(_fits(value, place, _size(entries)) is not False for place in free):
            raise TypeError(
                f"a batch must name the model's inputs, got {key!r} where forward takes "
                f"{', '.join(map(repr, forward)) or 'nothing'}; rename the entry, leave it out, or call the model "
                "yourself: forward_fn=lambda model, batch: model(...)"
            )
    return args, taken, labels


def labels_among(entries: Iterable[Any]) -> Tensor | None:
    """Returns the (N,) class labels among entries that are no inputs, the first ones; None where there are none."""
    return next((found for entry in entries if (found := _classes(entry)) is not None), None)


def _is_group(entries: tuple[Any, ...], forward: Parameters) -> bool:
    """Whether the first entry holds all inputs, as in ((a, b), labels) for a forward of a and b."""
    if not entries or not isinstance(entries[0], tuple | list):
        return False
    places = [place for place in forward.values() if place.kind in POSITIONAL]
    required = max(1, sum(map(_is_required, places)))
    if places and (len(entries[0]) != required or _says(places[0], "list", "tuple", "sequence")):
        return False
    # For a forward of two, ((a, b), c) may be a pair and c.
    return 1 < len(entries) < required or all(map(_is_target_like, entries[1:2]))


def _inputs(entries: tuple[Any, ...], forward: Parameters) -> int:
    """How many of the entries, from the first on, are inputs."""
    if entries and isinstance(entries[0], Mapping) and entries[0].keys() & forward.keys():
        return 1  # which holds all of them, by name
    places = [place for place in forward.values() if place.kind in POSITIONAL]
    places += [place for place in forward.values() if place.kind is _ARGS] * len(entries)
    count = min(max(1, sum(map(_is_required, places))), len(places), len(entries))
    size = _size(entries)
    while count < min(len(entries), len(places)) and _fits(entries[count], places[count], size):
        count += 1
    free = [*places[count:], *(place for place in forward.values() if place.kind is _KEY)]
    for index, entry in enumerate(entries[count:], count):
        for place in free:
            fits = _fits(entry, place, size)
            if fits or (fits is None and place in places[index : index + 1]):
                raise TypeError(_unclear(entry, place, forward))
    return count


def _fits(entry: Any, place: Parameter, size: int | None) -> bool | None:
    """Whether an entry is what a parameter takes, in a batch of so many samples; None where that is not clear."""
    if _size(entry) is None or _is_label(place) or _SETTING.search(_annotation(place)):
        return False
    target = _is_target_like(entry)
    clear = None if target and _size(entry) == size else True
    if _is_required(place) or place.kind is _ARGS:
        return True if _is_required(place) else clear
    if place.default is not None:  # a setting; where it is a number, there may be one per sample
        number = isinstance(place.default, int | float | Tensor) and not isinstance(place.default, bool)
        return None if number and not _is_classes(entry) else False
    if _LARGER.search(place.name):
        return False if _is_classes(entry) else clear
    if _PER_SAMPLE.search(place.name):
        return (entry.ndim < 2 or None) if target else False
    return None


def _size(value: Any) -> int | None:
    """How long the first tensor is; None where there is none."""
    tensors = (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor))
    return next((tensor.shape[0] if tensor.ndim else 1 for tensor in tensors), None)


def _is_required(place: Parameter) -> bool:
    return place.default is place.empty and place.kind not in (_ARGS, _KWARGS)


def _is_label(place: Parameter) -> bool:
    return place.name in LABELS and not _is_required(place)


def _annotation(place: Parameter) -> str:
    return "" if place.annotation is place.empty else inspect.formatannotation(place.annotation).lower()


def _says(place: Parameter, *kinds: str) -> bool:
    return any(kind in _annotation(place) for kind in kinds)


def _unclear(entry: Any, place: Parameter, forward: Parameters) -> str:
    names = [name for name in forward if _is_required(forward[name])] or list(forward)[:1]
    inputs = "".join(f"{name!r}: ..., " for name in names)
    ways = f"{{{inputs}{place.name!r}: ...}} if it is, {{{inputs}'labels': ...}} if it is not"
    what = f"the one of shape {tuple(entry.shape)}" if isinstance(entry, Tensor) else f"a {type(entry).__name__}"
    if place.kind is _ARGS:
        ways = "((a, b),) for a forward of a and b, {'input': a, 'labels': b} for a forward of a"
    return (
        f"a batch must say which entries are inputs: {what} may be the input `{place.name}` of forward, or no input; "
        f"give {ways}"
    )


def _only_input(entries: dict[str, Any]) -> str | None:
    """The entry that is the input where none is named like a parameter; None where that is not clear."""
    known = [key for key in _INPUTS if key in entries]
    tensors = [key for key, value in entries.items() if isinstance(value, Tensor)]
    return next((keys[0] for keys in (list(entries), known, tensors) if len(keys) == 1), None)


def _is_target_like(value: Any) -> bool:
    """Whether there is one number per sample, or one per class and sample that sum to one."""
    if not isinstance(value, Tensor) or value.ndim > 2 or value.dtype == torch.bool or value.is_complex():
        return False
    if value.ndim < 2 or value.shape[1] == 1:
        return True
    return bool((value >= 0).all() and ((value.sum(dim=1) - 1).abs() < 1e-3).all())


def _is_classes(value: Any) -> bool:
    """Whether these are class labels, (N,) integers."""
    return _is_target_like(value) and value.ndim == 1 and not value.is_floating_point()


def _classes(value: Any) -> Tensor | None:
    """(N,) class labels, those of one-hot rows too; None for any other target."""
    if _is_classes(value):
        labels: Tensor = value
        return labels
    if not _is_target_like(value) or value.ndim < 2 or value.shape[1] == 1 or not ((value == 0) | (value == 1)).all():
        return None
    return value.to(torch.uint8).argmax(dim=1)
