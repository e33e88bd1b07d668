"""Which axes of the inputs are open: the batch, found by trying other sizes in PyTorch, and those the user names."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jumpout_export.errors import ArgumentError, ArgumentTypeError
from jumpout_export.model.batches import Batch
from jumpout_export.model.run import run_copy
from jumpout_export.model.signature import batch_axis, input_names, outputs, tensors, with_tensors
from jumpout_export.tolerances import ROUNDING

BATCH = "batch"
# Of one axis, in the order in which they are tried: what a network with a stride, a window or a smallest size takes is
# among them.
_STEPS: tuple[Callable[[int, int], int], ...] = (
    lambda size, rank: size + 1 + rank,
    lambda size, rank: max(size - 1 - rank, 1),
    lambda size, rank: size + 2 * (1 + rank),
    lambda size, rank: size + 8 * (1 + rank),
    lambda size, rank: size + 32 * (1 + rank),
    lambda size, rank: size * (2 + rank),
    lambda size, rank: max(size // (2 + rank), 1),
)
_MOST_CANDIDATES = 4


@dataclass(frozen=True)
class Axes:
    """What each input's axes are, inputs in the order of the graph."""

    batched: tuple[bool, ...]  # whether the input's first axis is the batch
    size: int | None  # the fixed batch size, None where it is open
    further: tuple[Mapping[int, str], ...]  # the other open axes, by number; axes of one name have one size
    anonymous: frozenset[str] = frozenset()  # names in `further` that were made up here

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the further axes, each once."""
        return tuple(dict.fromkeys(name for axes in self.further for name in axes.values()))

    def opened(self) -> list[dict[int, str]]:
        """Returns every open axis by number, per input, the batch among them."""
        whole = self.size is None
        return [
            {**({0: BATCH} if whole and batched else {}), **further}
            for batched, further in zip(self.batched, self.further, strict=True)
        ]


def choose_axes(
    model: nn.Module, batch: Batch, dynamic_batch: bool, dynamic_axes: Mapping[str, Mapping[int, str]] | None = None
) -> Axes:
    """Returns the axes to leave open in an export.

    An input whose first axis merely happens to be as long as the batch is told from one that has an entry per sample:
    the model runs with another batch size and that input as it is, or one entry changes the results of other samples.
    For that, copies of the model are run. Of `dynamic_axes`, {input: {axis: name}}, axis 0 named `batch` is the batch.

    Raises:
        ValueError: if `dynamic_axes` names an input, an axis or a name that cannot be.
        TypeError: if it is no mapping of mappings.
    """
    names, values = input_names(model, batch), tensors(batch)
    given = _checked({} if dynamic_axes is None else dynamic_axes, names, batch, dynamic_batch)
    said = [given.get(name, {}).get(0) for name in names]
    if dynamic_batch:
        batched = _batched(model, batch, said)
    else:
        batched = tuple(name is None and batch_axis(batch, value) for name, value in zip(said, values, strict=True))
    further = tuple(
        {axis: text for axis, text in given.get(name, {}).items() if (axis, text) != (0, BATCH)} for name in names
    )
    return Axes(batched, None if dynamic_batch else batch.size, further)


def declared_axes(shapes: Sequence[Sequence[int | str | None]], names: Sequence[str], batch: Batch) -> Axes:
    """Returns the axes that a file declares open; an example batch says what the file does not.

    The shapes of its inputs hold sizes, names of open axes, or None for an open one without a name.
    """
    values = tensors(batch)
    if len(values) != len(shapes):  # reported by whoever compares the names
        return Axes(tuple(batch_axis(batch, value) for value in values), None, tuple({} for _ in values))
    first = next((shape[0] for shape in shapes if shape), None)
    # The batch is the first axis wherever it is: a name that is on another axis too is that of a further one.
    elsewhere = isinstance(first, str) and any(first in shape[1:] for shape in shapes)
    size = first if isinstance(first, int) else batch.size if elsewhere else None
    batched = tuple(
        not elsewhere and _declared_batch(shape, first, batch_axis(batch, value))
        for shape, value in zip(shapes, values, strict=True)
    )
    further: list[dict[int, str]] = []
    anonymous = set()
    for name, shape, value, is_batch in zip(names, shapes, values, batched, strict=True):
        axes = {}
        for axis, entry in enumerate(shape[: value.ndim]):
            if isinstance(entry, int) or (axis == 0 and is_batch):
                continue
            axes[axis] = entry or f"{name}:{axis}"
            if not entry:
                anonymous.add(axes[axis])
        further.append(axes)
    return Axes(batched, size, tuple(further), frozenset(anonymous))


def why_not_batched(shapes: Mapping[str, Sequence[int | str | None]]) -> str:
    """Returns why a server may not put samples of several requests into one batch of a file; empty if it may.

    It may if the first axis of every input and output is the open batch, and no other axis knows of it.

    Args:
        shapes: of the file's inputs and outputs, under what they are called, such as "input `x`"; they hold sizes,
            names of open axes, or None or an empty name for one without.
    """
    for what, shape in shapes.items():
        if not shape:
            return f"{what} is a scalar, without a batch axis"
        if isinstance(shape[0], int):
            return f"the first axis of {what} has a fixed size, {shape[0]}"
        if shape[0] != BATCH:
            return f"the first axis of {what} is not the batch"
        if any(re.search(rf"\b{BATCH}\b", str(axis)) for axis in shape[1:]):
            return f"{what} has a further axis that follows the batch"
    return ""


def other_sizes(batch: Batch, axes: Axes, runs: Callable[[Batch], bool], most: int = 2) -> Iterator[Batch]:
    """Yields the batch, cut or repeated, with up to `most` other sizes of all further open axes that a model takes."""
    sizes = _sizes(batch, axes)
    # First every axis by another amount, so that two which the file has tied to each other come apart.
    ranks = [range(len(sizes)), [0] * len(sizes)] if len(sizes) > 1 else [range(1)]
    found, tried = 0, set()
    for rank, step in itertools.product(ranks, _STEPS):
        moved = {name: step(size, own) for (name, size), own in zip(sizes.items(), rank, strict=True)}
        if tuple(moved.values()) in tried or any(moved[name] == size for name, size in sizes.items()):
            continue
        tried.add(tuple(moved.values()))
        candidate = resized(batch, axes.further, moved)
        if runs(candidate):
            yield candidate
            found += 1
            if found == most:
                return


def describe_sizes(batch: Batch, axes: Axes) -> str:
    """Returns the sizes along the further open axes, such as `height=9 width=11`."""
    return " ".join(f"{name}={size}" for name, size in _sizes(batch, axes).items())


def _sizes(batch: Batch, axes: Axes) -> dict[str, int]:
    return {
        name: value.shape[axis]
        for value, further in zip(tensors(batch), axes.further, strict=True)
        for axis, name in further.items()
        if axis < value.ndim
    }


def cut(value: Tensor, axis: int, size: int) -> Tensor:
    """Returns the tensor with another size along an axis; numbers beyond its end start again at its first."""
    return value.index_select(axis, (torch.arange(size) % value.shape[axis]).to(value.device))


def resized(batch: Batch, opened: Sequence[Mapping[int, str]], sizes: Mapping[str, int]) -> Batch:
    """Returns the batch with other sizes along open axes, of which `opened` has the names, {axis: name} per input."""
    values = []
    for value, axes in zip(tensors(batch), opened, strict=True):
        moved = value
        for axis, name in axes.items():
            moved = cut(moved, axis, sizes[name])
        values.append(moved)
    return with_tensors(batch, values)


def _checked(
    given: Mapping[str, Mapping[int, str]], names: Sequence[str], batch: Batch, dynamic_batch: bool
) -> dict[str, dict[int, str]]:
    if not isinstance(given, Mapping) or not all(isinstance(axes, Mapping) for axes in given.values()):
        raise ArgumentTypeError("dynamic_axes", f"dynamic_axes must be {{input: {{axis: name}}}}, got {given!r}")
    values = dict(zip(names, tensors(batch), strict=True))
    sizes: dict[str, tuple[int, str]] = {}
    first = next(name for name, value in values.items() if value.ndim)
    for name, axes in given.items():
        if name not in values:
            raise _wrong(f"dynamic_axes names no input of the model: {name!r}; it has {', '.join(values)}")
        for axis, text in axes.items():
            where, shape = f"dynamic_axes: axis {axis!r} of input `{name}`", tuple(values[name].shape)
            if not isinstance(axis, int) or isinstance(axis, bool) or not 0 <= axis < len(shape):
                raise _wrong(f"{where} does not exist, its shape is {shape}; axes count from 0")
            if not isinstance(text, str) or not text.isidentifier():
                raise _wrong(f"{where} needs a name such as height (letters, digits, _), got {text!r}")
            if text == BATCH and axis != 0:
                raise _wrong(f"{where} cannot be `{BATCH}`, which is the name of the first axis")
            if text == BATCH and shape[0] != batch.size:
                raise _wrong(f"{where} is no batch: it has {shape[0]} entries, the example holds {batch.size}")
            if text == BATCH and not dynamic_batch:
                raise _wrong(f"{where} cannot be open: dynamic_batch=False (--static) fixes the batch size")
            if axis == 0 and name == first and text != BATCH and dynamic_batch:
                raise _wrong(f"{where} is the batch: it is named `{BATCH}`, and dynamic_batch opens it")
            if shape[axis] < 2 and text != BATCH:
                raise _wrong(
                    f"{where} has length {shape[axis]} in the example, which the converter would take for one that "
                    "broadcasts; give an example of 2 or more"
                )
            size, other = sizes.setdefault(text, (shape[axis], name))
            if size != shape[axis]:
                raise _wrong(
                    f"{where} is named `{text}` as one of input `{other}`, but has {shape[axis]} entries and not {size}"
                )
    return {name: dict(axes) for name, axes in given.items()}


def _wrong(text: str) -> ArgumentError:
    return ArgumentError("dynamic_axes", text)


def _declared_batch(shape: Sequence[int | str | None], first: int | str | None, as_long: bool) -> bool:
    """Whether the first axis of this input is the batch, by its name, or where names say nothing, by its length."""
    if not shape:
        return False
    if isinstance(first, int) or isinstance(shape[0], int):
        return shape[0] == first and as_long
    return shape[0] == first or (as_long and BATCH not in (first, shape[0]))


def _batched(model: nn.Module, batch: Batch, said: Sequence[str | None]) -> tuple[bool, ...]:
    """Per input, whether its first axis is the batch; `said` is the name that the user gave it, if any."""
    values = tensors(batch)
    as_long = [batch_axis(batch, value) for value in values]
    first = as_long.index(True) if True in as_long else 0
    batched = [
        name == BATCH or (name is None and whether) or index == first
        for index, (whether, name) in enumerate(zip(as_long, said, strict=True))
    ]
    open_questions = [
        index for index, whether in enumerate(batched) if whether and index != first and said[index] is None
    ]
    if not open_questions or len(open_questions) > _MOST_CANDIDATES:
        return tuple(batched)
    size = batch.size + 1

    def moved(kept: Collection[int]) -> Batch:
        longer = [whether and index not in kept for index, whether in enumerate(batched)]
        pairs = zip(values, longer, strict=True)
        return with_tensors(batch, [cut(value, 0, size) if whether else value for value, whether in pairs])

    for count in range(len(open_questions) + 1):
        for fixed in itertools.combinations(open_questions, count):
            if _run(model, moved(fixed)) is None:
                continue
            tables = set(fixed)
            for index in set(open_questions) - tables:
                alone = _run(model, moved({*fixed, index}))
                if alone is not None and _reaches_others(model, moved(fixed), index):
                    tables.add(index)
            return tuple(whether and index not in tables for index, whether in enumerate(batched))
    return tuple(batched)  # the model fixes its batch size; the converter will say so


def _run(model: nn.Module, batch: Batch) -> list[Tensor] | None:
    try:
        return [output.tensor for output in outputs(run_copy(model, batch), [])]
    except Exception:  # the user's forward may raise anything; that it does is the answer
        return None


def _reaches_others(model: nn.Module, batch: Batch, index: int) -> bool:
    """Whether other entries in one half of this input change the results of the samples in the other half."""
    values, half = tensors(batch), batch.size // 2
    before = _run(model, batch)
    for own, others in ((slice(0, half), slice(half, None)), (slice(half, None), slice(0, half))):
        changed = values[index].clone()
        changed[own] = _other(values[index])[own]
        after = _run(model, with_tensors(batch, [changed if at == index else value for at, value in enumerate(values)]))
        if before is None or after is None:
            continue
        for one, two in zip(before, after, strict=True):
            if one.ndim and one.shape == two.shape and one.shape[0] == batch.size:
                kept, moved = one[others].double(), two[others].double()
                if not torch.allclose(kept, moved, rtol=ROUNDING, atol=ROUNDING, equal_nan=True):
                    return True
    return False


def _other(value: Tensor) -> Tensor:
    """Other values; of integers, which may be indices, its own in another order."""
    if value.dtype == torch.bool:
        return ~value
    return 1 - 1.5 * value if value.is_floating_point() else value.flatten().roll(1).view_as(value)
