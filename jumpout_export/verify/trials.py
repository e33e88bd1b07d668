"""What a file is tried on, and what PyTorch gives for it: each sample is run in float64 once."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from jumpout_export.model.axes import BATCH, Axes, describe_sizes, other_sizes, resized
from jumpout_export.model.batches import Batch
from jumpout_export.model.probes import MOVED, SIZES, Probe, make_up, rows, sizes_to_try
from jumpout_export.model.signature import tensors
from jumpout_export.onnxfile.numbers import Number
from jumpout_export.report import Check
from jumpout_export.text import first_line
from jumpout_export.tolerances import FACTOR, ceiling
from jumpout_export.verify.numbers import around
from jumpout_export.verify.values.pool import Pool
from jumpout_export.verify.values.reference import Expected
from jumpout_export.verify.values.scale import Scale
from jumpout_export.verify.verdicts import Seen

# Of the given samples and of made-up ones: as many are run alone.
GIVEN, MADE_UP = 4, 4
_HINT = "; does the model fix its batch size? then export with dynamic_batch=False"

_SWITCHED_OFF = Check(
    name="made-up inputs",
    verdict="not_run",
    required=False,
    note="switched off (made_up=False, --no-made-up-inputs): what the given inputs do not reach is not shown",
)


@dataclass(frozen=True)
class Trial:
    """A batch to compare on, and what has to come out."""

    probe: Probe
    expected: list[Expected]  # nothing where PyTorch cannot run it, which a check says
    # the same with PyTorch run on the batch itself, where `expected` is of samples alone; for a file that differs
    itself: Callable[[], Trial] | None = None


@dataclass(frozen=True)
class Effort:
    """What is tried beside the given samples."""

    made_up: bool = True  # inputs that nobody gave
    thorough: bool = False  # many batch sizes
    sizes: tuple[Mapping[str, int], ...] = ()  # of open axes by name; what is left out keeps the example's
    seed: int = 0  # of the made-up inputs
    recorded: bool = False  # whether the file was made of what the model does at any batch size


class Trials:
    """Everything that a file is tried on."""

    def __init__(self, seen: Seen, first: Batch, axes: Axes, effort: Effort) -> None:
        """Runs the first samples and some made-up ones alone.

        Args:
            seen: gets what there is to say about PyTorch, and the sizes of outputs.
            first: the first batch.
            axes: which are open.
            effort: what to try.
        """
        self._seen, self._first, self._axes, self._effort = seen, first, axes, effort
        self._generator = torch.Generator().manual_seed(effort.seed)
        self._pool = Pool(seen.reference, axes.batched, axes.size)
        self.refused: list[str] = []  # of the sizes that were asked for, those that PyTorch does not run
        self.tried: list[Number] = []  # of the file's numbers, those with both sides
        self._given = 0
        if axes.size is None and seen.sessions:
            self._fill()

    def of_first(self) -> Iterator[Trial]:
        """Yields batches of several sizes, of the first samples and of made-up ones, and other sizes of open axes."""
        if self._axes.size is None:
            more = [moved[BATCH] for moved in self._effort.sizes if moved.keys() == {BATCH}]
            always = sizes_to_try(self._first.size, thorough=self._effort.thorough)
            # The first batch as it came is one of them, as long as each of its samples was run alone.
            came = {self._first.size} if self._first.size == self._given else set()
            for size in sorted({*always, *more} - came) if len(self._pool) else ():
                order = self._pool.order(size)
                large = size not in more and size > max(self._first.size + 1, *SIZES)
                probe = Probe(f"batch={size}", self._pool.batch(order), 0, self._axes.batched, large)
                if size not in always and not self._can_run(probe.batch):
                    self.refused.append(f"{BATCH}={size}")
                elif large and self._effort.recorded and self._pool.knows_samples:
                    # Half of what a proof costs for large samples; PyTorch runs it where the file gives another result.
                    itself = functools.partial(self._trial, probe, order)
                    yield Trial(probe, self._pool.as_alone(order), itself)
                else:
                    yield self._trial(probe, order)
            self._seen.dependent += self._pool.dependent
        else:
            yield from self._whole_batches(self._axes.size)
        yield from self._other_sizes()

    def of_numbers(self, numbers: Sequence[Number], *, floats: bool = False) -> Iterator[Trial]:
        """Yields batches whose inputs lie around numbers of the file; what PyTorch does not take is left out."""
        if not self._effort.made_up:
            return
        samples = rows(self._first, range(MOVED if self._axes.size is None else self._axes.size), self._axes.batched)
        for number, group, batch in around(samples, self._seen.reference.inputs, numbers, floats=floats):
            expected, why = self._made_up(batch)
            if not why:
                self.tried.append(number)
                yield Trial(Probe(group, batch, 0, self._axes.batched), expected)

    def of_data(self, probe: Probe) -> Trial:
        """Returns a batch as it came with what PyTorch gives for it."""
        samples = range(probe.start, probe.start + probe.batch.size)
        known = len(self._pool) and samples.stop <= self._given
        return self._trial(probe, samples if known else None, new=not known)

    def _fill(self) -> None:
        """Runs samples alone; a made-up one that PyTorch itself cannot take is left out, one that was given fails."""
        given = min(GIVEN, self._first.size)
        for number in range(given):
            sample = rows(self._first, [number], self._axes.batched)
            try:
                alone = self._pool.run(sample)
            except Exception as error:  # the user's forward may raise anything
                self._cannot_run("batch=1", error)
                return
            self._pool.add(sample, alone)
        with contextlib.suppress(Exception):  # what PyTorch cannot run is said when that batch is compared
            self._pool.learn_axes()
        for number in range(given):
            self._prime(self._pool.alone(number))
        self._given = given
        if not self._effort.made_up:
            self._seen.checks.append(_SWITCHED_OFF)
            return
        made = make_up(self._first, MADE_UP, self._generator, self._axes.batched)
        skipped = []
        for number in range(MADE_UP):
            sample = rows(made, [number], self._axes.batched)
            alone, why = self._made_up(sample)
            if why:
                skipped.append(why)
            else:
                self._pool.add(sample, alone)
                self._prime(alone)
        self._say_made_up(MADE_UP, skipped)

    def _prime(self, expected: list[Expected], kinds: Iterable[str] = ("data", "sizes")) -> None:
        for kind in kinds:
            for output in expected:
                self._seen.scales.setdefault((kind, output.name), Scale()).prime(output)

    def _made_up(self, batch: Batch) -> tuple[list[Expected], str]:
        """Returns what PyTorch gives for an input that nobody gave, and why it says nothing, if it does not."""
        try:
            expected = self._pool.run(batch)
        except Exception as error:  # the user's forward may raise anything
            return [], f"PyTorch cannot run it: {first_line(error)}"
        for output in expected:
            scale = self._seen.scales.get(("data", output.name), Scale())
            if not output.own.is_floating_point():
                if not torch.equal(output.own, output.exact):
                    return [], f"float32 and float64 decide differently in output `{output.name}`"
            elif not torch.isfinite(output.own).all() or not torch.isfinite(output.exact).all():
                return [], f"output `{output.name}` is not finite"
            elif output.own.numel() and self._seen.reference.has_double:
                own = float(scale.measure(output, new=not scale.is_primed).max())
                if FACTOR * own > ceiling(output.precision or output.own.dtype):
                    return [], f"PyTorch's own error on output `{output.name}` is {own:.2g} of its size"
        return expected, ""

    def _say_made_up(self, count: int, skipped: list[str]) -> None:
        """What nobody gave fails nothing: it is left out, and the report says so."""
        why = "; ".join(dict.fromkeys(skipped))
        if len(skipped) == count:
            note = f"none of {count} made-up inputs is of use: {why}; what the given ones do not reach is not shown"
            self._seen.checks.append(Check(name="made-up inputs", verdict="not_run", required=False, note=note))
            return
        note = f"{count - len(skipped)} inputs made of the given ones"
        note += f"; {len(skipped)} left out: {why}" if skipped else ""
        self._seen.checks.append(Check(name="made-up inputs", verdict="pass", note=note))

    def _whole_batches(self, size: int) -> Iterator[Trial]:
        """Yields batches of the size that the file fixes; their samples may depend on each other."""
        if self._first.size != size:
            batch = rows(self._first, range(size), self._axes.batched)
            yield self._trial(Probe(f"batch={size}", batch, 0, self._axes.batched), new=True)
        if not self._effort.made_up:
            self._seen.checks.append(_SWITCHED_OFF)
            return
        made = make_up(rows(self._first, range(size), self._axes.batched), size, self._generator, self._axes.batched)
        expected, why = self._made_up(made)
        self._say_made_up(1, [why] if why else [])
        if not why:
            self._prime(expected)
            yield Trial(Probe(f"made-up batch={size}", made, 0, self._axes.batched), expected)

    def _other_sizes(self) -> Iterator[Trial]:
        """Yields batches with every further open axis moved."""
        if not self._axes.names:
            return
        count = MOVED if self._axes.size is None else self._axes.size
        batch = rows(self._first, range(count), self._axes.batched)
        found = []
        for moved in itertools.chain(other_sizes(batch, self._axes, self._can_run), self._asked_for(batch)):
            group = f"sizes batch={moved.size} {describe_sizes(moved, self._axes)}"
            found.append(self._trial(Probe(group, moved, 0, self._axes.batched)))
        for trial in found:
            self._prime(trial.expected, ("sizes",))
        for trial in found:
            self._seen.moved.append(trial.probe.group.removeprefix("sizes "))
            self._alone_too(trial)
            yield trial

    def _asked_for(self, batch: Batch) -> Iterator[Batch]:
        """Yields the batch at the sizes that were asked for, as far as PyTorch takes them."""
        for wanted in self._effort.sizes:
            if wanted.keys() == {BATCH}:
                continue
            here = {
                name: value.shape[axis]
                for value, axes in zip(tensors(batch), self._axes.further, strict=True)
                for axis, name in axes.items()
            }
            samples = rows(batch, range(wanted.get(BATCH, batch.size)), self._axes.batched)
            moved = resized(samples, self._axes.further, here | dict(wanted))
            if self._can_run(moved):
                yield moved
            else:
                self.refused.append(" ".join(f"{name}={size}" for name, size in wanted.items()))

    def _alone_too(self, trial: Trial) -> None:
        """Compares two samples of a batch of other sizes with the same samples alone."""
        if self._axes.size is not None or not trial.expected:
            return
        pool, size = Pool(self._seen.reference, self._axes.batched), trial.probe.batch.size
        try:
            for number in range(size):
                sample = rows(trial.probe.batch, [number], self._axes.batched)
                pool.add(sample, pool.run(sample))
            pool.expected(trial.probe.group, trial.probe.batch, range(size))
        except Exception as error:  # the user's forward may raise anything
            self._cannot_run(f"{trial.probe.group}, samples alone", error)
            return
        self._seen.dependent += pool.dependent

    def _can_run(self, batch: Batch) -> bool:
        """Whether PyTorch itself runs a batch."""
        try:
            self._seen.reference.own(batch)
        except Exception:  # the user's forward may raise anything; that it does is the answer
            return False
        return True

    def _trial(self, probe: Probe, order: list[int] | range | None = None, *, new: bool = False) -> Trial:
        try:
            if order is not None:
                expected = self._pool.expected(probe.group, probe.batch, order)
                self._seen.with_batch |= dict.fromkeys(output.name for output in expected)
            else:
                expected = self._pool.run(probe.batch)
        except Exception as error:  # the user's forward may raise anything
            self._cannot_run(probe.group, error)
            return Trial(probe, [])
        if new:
            self._prime(expected, ("data",))
        return Trial(probe, expected)

    def _cannot_run(self, group: str, error: Exception) -> None:
        hint = _HINT if group.startswith("batch=") else ""
        note = f"PyTorch itself cannot run it: {first_line(error)}{hint}"
        self._seen.checks.append(Check(name=f"torch/{group}", verdict="fail", note=note))
