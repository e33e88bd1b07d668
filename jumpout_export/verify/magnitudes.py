"""Inputs that are larger or smaller than those that were given: where PyTorch has a value and the file has none.

A formula may be right on the given inputs and break beyond them: `log(sigmoid(x))` is minus infinity at -100, where
PyTorch's logsigmoid is -100, and `log(1 + x)` has no digit left at 1e-8. Such a file is no wrong one, so it is a
warning; where the given inputs themselves reach as far, it is a failure. Whether digits are lost is measured, at the
node that loses them: where none does, the file computes something else there, as with another bound of a Clip. Where
a file that it is compared with has another bound, that is a failure, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from jumpout_export.model.axes import Axes
from jumpout_export.model.batches import Batch
from jumpout_export.model.probes import rows
from jumpout_export.model.signature import Output, tensors, with_tensors
from jumpout_export.onnxfile.load import load_onnx
from jumpout_export.onnxfile.numbers import Number
from jumpout_export.report import Check
from jumpout_export.runtime.session import Level, ProviderLostError, Session
from jumpout_export.text import first_line, joined
from jumpout_export.tolerances import DIGITS_KEPT, DIGITS_LOST, DIGITS_LOST_SHARE
from jumpout_export.verify.divergence.breaks import first_not_finite, first_without_digits
from jumpout_export.verify.divergence.locate import locate_divergence

NAME = "magnitudes"
# Factors of the given inputs, and how many samples are run at each: only some reach the largest logits of their batch.
SCALES = {1e-8: 1, 1e-3: 1, 10.0: 1, 100.0: 5}
# Of the largest number of a type: beyond, a sum in another order may overflow.
_NEAR_OVERFLOW = 1 / 16
# Of the largest value of an output; smaller ones have lost no digit that matters.
_SMALL = 1e-3

Run = Callable[[Batch], list[Output]]


@dataclass(frozen=True)
class _Broken:
    """What a session gives at one scale where PyTorch gives something else."""

    label: str  # of the session
    batch: Batch
    text: str  # for a person
    usual: Batch | None = None  # the samples that it is made of
    off: bool = False  # whether finite values are off, else values are not finite
    scale: float = 1.0
    inside: bool = False  # whether some of the given inputs are as large


def check_magnitudes(
    path: Path,
    original: nn.Module,
    sessions: Sequence[tuple[str, Session]],
    own: Run,
    exact: Run | None,
    given: Batch,
    axes: Axes,
    numbers: Sequence[Number] = (),
) -> Check | None:
    """Returns whether the file keeps up with PyTorch on inputs of other magnitudes; None if it has none to scale.

    A few samples, those with the largest and the smallest value first (a whole batch, where its size is fixed), are run
    at each scale, in PyTorch and each session. Where PyTorch cannot run them, or has no finite value, nothing is
    compared.

    Args:
        path: the file.
        original: the model in eval mode, on the CPU; copies of it are run where the file is wrong, to say where.
        sessions: that were opened on it, with their labels, such as `cpu/all`.
        own: runs the model in its own precision, in eval mode.
        exact: runs it in float64, None if it cannot be; called where a file seems to be wrong.
        given: the first batch.
        axes: which are open.
        numbers: that the file, or the one that the model was read from, has alone. Where there is one and the file
            computes something else at a scale, a bound is a wrong one: that fails.

    Raises:
        ProviderLostError: if a provider cannot be used any more.
    """
    scaled = [_can_be_scaled(value) for value in tensors(given)]
    if not any(scaled) or not sessions:
        return None
    order = _extremes_first(given, axes, scaled)
    skipped: list[str] = []
    compared: list[float] = []
    found: list[_Broken] = []
    for scale, most in SCALES.items():
        samples = rows(given, order[:most] if axes.size is None else range(axes.size), axes.batched)
        moved = [v * scale if is_scaled else v for v, is_scaled in zip(tensors(samples), scaled, strict=True)]
        batch = with_tensors(samples, moved)
        try:
            expected = own(batch)
        except Exception as error:  # the user's forward may raise anything
            skipped.append(f"at {scale:g} times PyTorch cannot run it: {first_line(error)}")
            continue
        if not any(one.tensor.is_floating_point() for one in expected):
            return None
        if not any(bool(torch.isfinite(one.tensor).any()) for one in expected if one.tensor.is_floating_point()):
            skipped.append(f"at {scale:g} times PyTorch has no finite value")
            continue
        compared.append(scale)
        inside = _reaches(given, batch, scaled)
        broken = (_compare(label, session, batch, expected, exact) for label, session in sessions)
        found += [replace(one, usual=samples, scale=scale, inside=inside) for one in broken if one is not None]
    if found:
        return _verdict(path, original, found, numbers)
    if not compared:
        note = f"nothing could be compared on larger and smaller inputs: {'; '.join(skipped)}"
        return Check(name=NAME, verdict="not_run", required=False, note=note)
    at = ", ".join(f"{scale:g}" for scale in compared)
    note = f"finite, with the digits that PyTorch has, at {at} times the given inputs"
    return Check(name=NAME, verdict="pass", note="; ".join([note, *skipped]))


def _extremes_first(given: Batch, axes: Axes, scaled: Sequence[bool]) -> list[int]:
    """The numbers of all samples, of which the first hold the largest and smallest value of an input that is scaled."""
    for value, is_batch, is_scaled in zip(tensors(given), axes.batched, scaled, strict=True):
        if is_batch and is_scaled and value.numel():
            flat = value.reshape(len(value), -1)
            first = [int(flat.amax(1).argmax()), int(flat.amin(1).argmin())]
            return list(dict.fromkeys([*first, *range(len(value))]))
    return [0]


def _can_be_scaled(value: Tensor) -> bool:
    """Whether an input is a quantity: floating point, and not a mask of zeros and ones."""
    return value.is_floating_point() and bool(((value != 0) & (value != 1)).any())


def _compare(label: str, session: Session, batch: Batch, expected: list[Output], exact: Run | None) -> _Broken | None:
    try:
        found = session.run(tensors(batch))
    except ProviderLostError:
        raise
    except Exception as error:  # ONNX Runtime raises a dozen types without a common base
        return _Broken(label, batch, f"ONNX Runtime cannot run it: {first_line(error)}")
    for want, have in zip(expected, found, strict=True):
        if not want.tensor.is_floating_point() or have.shape != want.tensor.shape:
            continue  # what is of another shape is reported where the given inputs are compared
        most = torch.finfo(want.tensor.dtype).max * _NEAR_OVERFLOW
        finite = torch.isfinite(want.tensor) & (want.tensor.abs() < most)
        bad = int((finite & ~torch.isfinite(have)).sum())
        if bad:
            text = f"output `{want.name}` has {bad} NaN or infinite of {have.numel()} values where PyTorch's are finite"
            return _Broken(label, batch, text)
    return _wrong(label, batch, expected, found, exact)


def _wrong(label: str, batch: Batch, expected: list[Output], found: list[Tensor], exact: Run | None) -> _Broken | None:
    """Where the file has hardly a digit right of many values of which PyTorch has most."""
    suspects = [
        number
        for number, (want, have) in enumerate(zip(expected, found, strict=True))
        if want.tensor.is_floating_point()
        and have.shape == want.tensor.shape
        and have.numel()
        and _share(_off(have, want.tensor.double()) > DIGITS_LOST, want.tensor) >= DIGITS_LOST_SHARE
    ]
    if not suspects or exact is None:
        return None
    try:
        reference = exact(batch)
    except Exception:  # a forward that fixes float32 may fail in any way; then nobody knows who is right
        return None
    for number in suspects:
        true = reference[number].tensor.double()
        own = _off(expected[number].tensor, true)
        off = (_off(found[number], true) > DIGITS_LOST) & (own < DIGITS_KEPT)
        if _share(off, true) >= DIGITS_LOST_SHARE:
            worst = float(_off(found[number], true)[off].median())
            text = (
                f"output `{expected[number].name}` is off by {worst:.1%} of the value in {int(off.sum())} of "
                f"{true.numel()} values, where PyTorch is off by {float(own[off].median()):.1g}"
            )
            return _Broken(label, batch, text, off=True)
    return None


def _off(value: Tensor, true: Tensor) -> Tensor:
    """The error in units of the true value; 0 where nothing counts."""
    return ((value.double() - true).abs() / true.abs()).where(_counts(true), 0.0).nan_to_num(nan=0.0)


def _counts(true: Tensor) -> Tensor:
    """What is not a rounding error beside other values of its output, as a probability of 1e-9 is."""
    return torch.isfinite(true) & (true.abs() > _SMALL * true.abs().where(torch.isfinite(true), 0.0).max())


def _share(flags: Tensor, true: Tensor) -> float:
    return float(flags.sum()) / max(1, int(_counts(true).sum()))


def _reaches(given: Batch, batch: Batch, scaled: Sequence[bool]) -> bool:
    """Whether the given samples are of such a magnitude too: their largest values, of every input that is scaled."""
    for value, moved, is_scaled in zip(tensors(given), tensors(batch), scaled, strict=True):
        if is_scaled:
            samples = value if value.ndim else value[None]
            sizes = [float(one.abs().max()) for one in samples.reshape(len(samples), -1) if one.numel()]
            if not sizes or not min(sizes) <= float(moved.abs().max()) <= max(sizes):
                return False
    return True


def _verdict(path: Path, original: nn.Module, found: list[_Broken], numbers: Sequence[Number]) -> Check:
    """What the given inputs reach counts before what they do not, an infinity before wrong values, then the nearest."""
    worst = min(found, key=lambda one: (not one.inside, one.off, abs(math.log10(one.scale))))
    where = ", as large as some that were given," if worst.inside else ""
    more = dict.fromkeys(f"{one.scale:g}" for one in found if one.scale != worst.scale)
    also = f"; also at {', '.join(more)} times" if more else ""
    at = f"at {worst.scale:g} times the given inputs{where or ','} {worst.text} ({worst.label})"
    cause, is_other = _cause(path, original, worst)
    bounds = [str(one) for one in numbers if not one.is_integer]
    bound = f"; one of the two files alone has {joined(bounds)}" if is_other and bounds else ""
    return Check(
        name=NAME,
        measured=worst.scale,
        verdict="fail" if worst.inside or bound else "warning",
        note=f"{at}; {cause}{bound}{also}",
    )


def _cause(path: Path, original: nn.Module, broken: _Broken) -> tuple[str, bool]:
    """The node that begins it, or the layer, as a phrase, and whether it computes something else."""
    provider, _, level = broken.label.partition("/")
    inputs = tensors(broken.batch)
    try:
        if not broken.off:
            return first_not_finite(path, provider, level, inputs, tensors(broken.usual or broken.batch)), False
        if lost := first_without_digits(path, provider, level, inputs):
            return lost, False
        other = locate_divergence(
            path, load_onnx(path), original, broken.batch, [], provider=provider, level=cast("Level", level)
        )
    except Exception as error:  # of onnx, ONNX Runtime and the user's forward, in a dozen types without a common base
        return f"which node begins it could not be seen: {first_line(error)}", False
    return f"no node loses digits, so it computes something else there: {other.note}", True
