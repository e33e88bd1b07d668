"""Axes that an export leaves fixed though the model takes other sizes: how to say that they are open."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from torch import nn

from jumpout_export.model.axes import Axes, cut
from jumpout_export.model.batches import Batch
from jumpout_export.model.run import run_copy
from jumpout_export.model.signature import input_names, tensors, with_tensors

# Ways to pair up inputs that are tried at most.
_MOST = 64


def offer_batch_axes(model: nn.Module, batch: Batch, axes: Axes) -> str:
    """Returns how to open the batch where some input has it on another axis than its first; empty if that is not it.

    As a recurrent network's state does, (layers, N, H). Copies of the model are run with one sample more.
    """
    names, values = input_names(model, batch), tensors(batch)
    first = axes.batched.index(True) if True in axes.batched else 0
    choices: list[list[int | None]] = []
    for index, value in enumerate(values):
        own = [axis for axis, size in enumerate(value.shape) if size == batch.size and axis not in axes.further[index]]
        choices.append([0] if index == first else [*own, None])
    for choice in itertools.islice(itertools.product(*choices), _MOST):
        chosen = {index: axis for index, axis in enumerate(choice) if axis is not None}
        if any(chosen.values()) and _runs(model, batch, chosen, batch.size + 1):
            places = " and ".join(f"axis {axis} of `{names[index]}`" for index, axis in chosen.items())
            return (
                f"the batch is not the first axis of every input: PyTorch runs another size of {places}; "
                f"{_how(names, chosen, 'n', batch.size, static=True)}"
            )
    return ""


def fixed_rows(model: nn.Module, batch: Batch, axes: Axes) -> list[str]:
    """Returns sentences on inputs whose first axis, not the batch, stays fixed, though the model takes other sizes.

    As the texts beside the images of a network that compares all with all. Copies of the model are run with one row
    more; of several such inputs of one length, with one row more of each alone, or of all.
    """
    names, values = input_names(model, batch), tensors(batch)
    fixed: dict[int, list[int]] = {}
    for index, (value, batched, further) in enumerate(zip(values, axes.batched, axes.further, strict=True)):
        if axes.size is None and value.ndim and value.shape[0] and not batched and 0 not in further:
            fixed.setdefault(value.shape[0], []).append(index)
    found = []
    for rows, indices in fixed.items():
        for group in _groups(model, batch, indices, rows + 1):
            places = " and ".join(f"`{names[index]}`" for index in group)
            found.append(
                f"the first axis of {places} is fixed at {rows}, the example's, though the model takes other sizes; "
                f"{_how(names, dict.fromkeys(group, 0), 'rows', rows, static=False)}"
            )
    return found


def _groups(model: nn.Module, batch: Batch, indices: list[int], size: int) -> Iterator[list[int]]:
    alone = [index for index in indices if _runs(model, batch, {index: 0}, size)]
    yield from ([index] for index in alone)
    rest = [index for index in indices if index not in alone]
    if len(rest) > 1 and _runs(model, batch, dict.fromkeys(rest, 0), size):
        yield rest


def _runs(model: nn.Module, batch: Batch, chosen: Mapping[int, int], size: int) -> bool:
    values = [
        cut(value, chosen[index], size) if index in chosen else value for index, value in enumerate(tensors(batch))
    ]
    try:
        run_copy(model, with_tensors(batch, values))
    except Exception:  # the user's forward may raise anything; that it does is the answer
        return False
    return True


def _how(names: list[str], chosen: Mapping[int, int], axis_name: str, size: int, *, static: bool) -> str:
    """The arguments and options that open these axes, under one name."""
    axes = {names[index]: {axis: axis_name} for index, axis in chosen.items()}
    options = ["--static"] * static + [f"--dynamic {names[index]}:{axis}={axis_name}" for index, axis in chosen.items()]
    call = f"{'dynamic_batch=False, ' if static else ''}dynamic_axes={axes}"
    larger = "" if size > 1 else ", with an example of 2 or more"
    return f"open {'it' if len(chosen) == 1 else 'them'} with {call} ({' '.join(options)}){larger}"
