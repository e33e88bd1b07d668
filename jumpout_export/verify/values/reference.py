"""What PyTorch says: the eval model in its own precision, and in float64 as the reference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jumpout_export.errors import NotFoldableError
from jumpout_export.fold.network.audit import refuse_randomness
from jumpout_export.model.batches import Batch
from jumpout_export.model.probes import jittered
from jumpout_export.model.randomness import (
    generator_states,
    moved_generators,
    random_calls,
    reseed,
    rng_restored,
    same_bits,
)
from jumpout_export.model.run import call, cast, double_copy, sharing_copy
from jumpout_export.model.signature import Output, fresh, input_names, outputs, tensors
from jumpout_export.report import Check, counted
from jumpout_export.text import first_line

# Runs with other seeds per batch size, where random numbers are allowed: of a layer that is skipped in a tenth of the
# runs, 97% of the sizes show it.
_OTHER_SEEDS = 32


@dataclass(frozen=True)
class Expected:
    """One output of PyTorch."""

    name: str  # in the ONNX graph
    own: Tensor  # as the model computes it
    exact: Tensor  # the reference, in float64 where the output is floating point
    # what the model computes in, if that is less than the output's type says; else None
    precision: torch.dtype | None = None
    axis: int | None = 0  # that has an entry per sample; None without any


class Reference:
    """Runs copies of the eval model in which nothing was replaced, and of it in float64."""

    def __init__(
        self, original: nn.Module, batch: Batch, *, folded: nn.Module | None = None, allow: Iterable[str] = ()
    ) -> None:
        """Takes copies.

        Args:
            original: in eval mode, on the CPU; it stays as it is.
            batch: inputs on the CPU.
            folded: the model that was converted; it gives the inputs their names.
            allow: module paths in which, and below which, random numbers may be drawn, without changing the result.
        """
        self.inputs = input_names(original if folded is None else folded, batch)  # in the ONNX graph
        self.problem = ""  # why there is no float64 copy
        # samples that were run so far, in the model's own precision and in float64
        self.samples_own = self.samples_double = 0
        self._random: dict[int, str] = {}
        self._model = sharing_copy(original)
        self._allow = tuple(allow)
        self._drawn: dict[str, None] = {}
        self._seed = 0
        self._sizes: set[int] = set()
        self._double: nn.Module | None = double_copy(original)
        self._tried = False  # whether the float64 copy ran once

    @property
    def has_double(self) -> bool:
        """Whether there is a float64 copy that runs, as far as it was tried."""
        return self._double is not None

    def __call__(self, batch: Batch) -> list[Expected]:
        """Returns every output for a batch; raises whatever the model raises."""
        own = self.own(batch)
        return self.expected(batch, own, self.exact(batch) if self.has_double else own)

    def own(self, batch: Batch) -> list[Output]:
        """Returns every output in the model's own precision; raises whatever the model raises."""
        self.samples_own += batch.size
        own = self._run(self._model, batch)
        self._audit(batch)
        return own

    def exact(self, batch: Batch) -> list[Output]:
        """Returns every output in float64, or in the model's own precision where there is no float64 copy."""
        if self._double is not None:
            try:
                found = self._run(self._double, cast(batch, torch.float64))
            except Exception as error:  # a forward that fixes float32 may fail in any way; the reason is reported
                if self._tried:
                    raise
                own = self.own(batch)  # raises where the batch is to blame
                self._double, self.problem = None, first_line(error)
                return own
            self._tried = True
            self.samples_double += batch.size
            return found
        return self.own(batch)

    def expected(
        self, batch: Batch, own: list[Output], exact: list[Output], axes: Sequence[int | None] | None = None
    ) -> list[Expected]:
        """Returns the outputs for a batch in both precisions; `axes` says which axis of each is that of samples."""
        if [one.tensor.shape for one in own] != [two.tensor.shape for two in exact]:
            self._double, self.problem = None, "in float64 it returns other shapes"
            exact = own
        precision = self._precision(batch)
        return [
            Expected(
                one.name,
                one.tensor,
                two.tensor.double() if one.tensor.is_floating_point() else two.tensor,
                _coarser(one.tensor.dtype, precision),
                axis,
            )
            for one, two, axis in zip(own, exact, axes or [0] * len(own), strict=True)
        ]

    def nearby(self, batch: Batch) -> Iterator[list[Expected]]:
        """Yields every output for inputs close to those of a batch, as long as the model takes them."""
        for other in jittered(batch, torch.Generator().manual_seed(0)):
            try:
                yield self(other)
            except Exception:  # a forward may refuse what is not exactly its data; then less is known of its rounding
                return

    def _precision(self, batch: Batch) -> torch.dtype | None:
        """The most precise type that the model computes in; of float64, which any constant may have, not alone."""
        values = [*self._model.parameters(), *self._model.buffers(), *tensors(batch)]
        found = {value.dtype for value in values if value.is_floating_point()}
        return min(found - {torch.float64} or found, key=lambda dtype: torch.finfo(dtype).eps, default=None)

    def checks(self) -> list[Check]:
        """Returns the verdict on randomness at every call so far; none before the first."""
        if not self._sizes:
            return []
        sizes = ", ".join(str(size) for size in sorted(self._sizes))
        good = "no random number drawn"
        if self._drawn:
            good = (
                f"random numbers are drawn in {', '.join(self._drawn)} (allowed) and do not change the result in "
                f"{_OTHER_SEEDS} runs with other seeds per batch size"
            )
        good += f"; batch sizes {sizes}"
        return [counted("randomness", [f"batch size {size}: {text}" for size, text in self._random.items()], good)]

    def _audit(self, batch: Batch) -> None:
        """Says of a batch size that was not seen before what draws there, if something does."""
        new = batch.size not in self._sizes
        self._sizes.add(batch.size)
        if self._allow:
            self._audit_allowed(batch, _OTHER_SEEDS if new else 1)
        elif new and batch.size in self._random:
            model = sharing_copy(self._model)
            try:
                refuse_randomness(model, lambda: call(model, batch))
            except NotFoldableError as error:
                self._random[batch.size] = str(error)  # says more than which generator moved

    def _audit_allowed(self, batch: Batch, runs: int) -> None:
        """The file draws nothing, so what the model draws must not matter, whatever the seeds."""
        model = sharing_copy(self._model)
        places = {f"`{path}`" if path else "the model" for path in self._allow}
        for drawn in random_calls(model, lambda: call(model, batch)):
            self._drawn |= dict.fromkeys([f"`{drawn.module}`"] if drawn.file and drawn.module else sorted(places))
        first = [output.tensor for output in self._run(model, batch)]
        for _ in range(runs):
            self._seed += 1
            with rng_restored():
                reseed(self._seed)
                if not same_bits(first, [output.tensor for output in self._run(model, batch)]):
                    self._random[batch.size] = (
                        "the model's result depends on random numbers that the file does not draw, allowed in "
                        + ", ".join(sorted(places))
                    )
                    return

    def _run(self, model: nn.Module, batch: Batch) -> list[Output]:
        with rng_restored(), torch.no_grad():
            before = generator_states()
            found = outputs(fresh(batch)(model), self.inputs)
            # A parameter that is returned as it is would take its gradient along.
            result = [Output(output.name, output.tensor.detach()) for output in found]
            moved = [] if self._allow else moved_generators(before)
        if moved:
            self._random.setdefault(batch.size, f"the model draws random numbers in eval mode: {', '.join(moved)}")
        return result


def _coarser(dtype: torch.dtype, precision: torch.dtype | None) -> torch.dtype | None:
    """The precision where it is less than the output's own."""
    if precision is None or not dtype.is_floating_point or torch.finfo(precision).eps <= torch.finfo(dtype).eps:
        return None
    return precision
