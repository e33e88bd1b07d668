"""Statistics that are the serving ones while a model trains: from the last batches, made when they are needed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from jumpout_export.batchnorm.autocast import Autocast
from jumpout_export.batchnorm.kept import KeptBatches
from jumpout_export.batchnorm.measure.distributed import WORLD, Ranks
from jumpout_export.batchnorm.measure.feed import Feed, ForwardFn
from jumpout_export.batchnorm.measure.layers import Layer, batchnorm_layers, not_measured, select_layers
from jumpout_export.batchnorm.measure.states import RENORMALISED, preserved, undisturbed
from jumpout_export.batchnorm.meeting import meet
from jumpout_export.batchnorm.recalibrate import Recalibration
from jumpout_export.batchnorm.solve import Corrected, Solution, current, look_again, solve_batch
from jumpout_export.batchnorm.swap import put, swapped
from jumpout_export.errors import ArgumentError
from jumpout_export.model.batches import device_of, split_batch
from jumpout_export.model.wrappers import COMPILED, DISTRIBUTED, unwrap
from jumpout_export.text import joined


class ServingStatistics:
    """BatchNorm statistics of the network without noise, whenever a training loop validates or saves its model.

    The running statistics are those of the noisy network, so that what validation shows during training is not what
    the network can do. `step()` keeps references to the last few input batches. `with serving():` runs them once
    without noise, each normalised by its own statistics, puts what the BatchNorms saw in place of the running
    statistics, and on the way out the buffers are bitwise as they were: training is the same as without it.

    A read costs one forward pass, without gradients, over `keep` batches. The kept batches stay in memory where they
    are; the statistics are those of `keep` x B samples, and `check_batchnorm` in the `with` knows that.

    Changed are the BatchNorms that train. Frozen ones (in eval mode at the last `step()` with the model in training
    mode), those of fused modules of quantisation-aware training and InstanceNorms with running statistics keep what
    they store unless named; `left_out` names them.

    Args:
        model: a model with BatchNorm layers, complete. Of a DistributedDataParallel or compiled model the one inside is
            run, uncompiled.
        keep: optimiser batches to keep, at least 1; with 0 nothing is kept, and the read is given batches.
        layers: names of the layers to change; None: as above.
        forward_fn: `forward_fn(model, batch)` replaces the call; it gets the batch as `step()` did.
        device: where batches go; None: where the model's first parameter is.
        process_group: processes of torch.distributed that train together (`"world"`: all). A read is collective then,
            and what all ranks kept counts. None: that of a DistributedDataParallel or FullyShardedDataParallel `model`,
            all for one that was given to `fully_shard`, otherwise this process alone.
        timeout: seconds for which a read waits for the other ranks.

    Attributes:
        model: the network, without its compiled or distributed wrapper.

    Raises:
        ValueError: if the model has no BatchNorm that is to be changed, or a number is out of range.
        TypeError: if `model` is no nn.Module.

    Example:
        >>> serving = ServingStatistics(model, keep=8)
        >>> for x, y in loader:
        ...     train_step(x, y)
        ...     serving.step(x)
        >>> with serving():
        ...     validate(model), save(model)
        >>> serving.write()
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        keep: int = 8,
        layers: Iterable[str] | None = None,
        forward_fn: ForwardFn | None = None,
        device: torch.device | str | None = None,
        process_group: dist.ProcessGroup | Literal["world"] | None = None,
        timeout: float = 60.0,
    ) -> None:
        if not isinstance(keep, int) or keep < 0:
            raise ArgumentError(
                "keep", f"keep must be at least 1 batch, or 0 to give batches at the read, got {keep!r}"
            )
        if not isinstance(timeout, int | float) or not timeout > 0:
            raise ArgumentError("timeout", f"timeout must be positive, in seconds, got {timeout!r}")
        group = _group_of(model) if process_group is None else process_group
        self._ranks = Ranks(group)
        self._group = dist.group.WORLD if group == WORLD else group
        self._timeout = timeout
        self.model: nn.Module = unwrap(model, (COMPILED, DISTRIBUTED))
        self._layers = batchnorm_layers(self.model)
        self._named = None if layers is None else select_layers(self._layers, layers)
        self._keep, self._kept = keep, KeptBatches(keep)
        self._forward_fn, self._device = forward_fn, device
        self._autocast: Autocast | None = None
        # Names of the layers that were in eval mode at the last step of training; None before.
        self._resting: set[str] | None = None
        self._swapped = False
        self._chosen()

    @property
    def left_out(self) -> dict[str, str]:
        """Layers that keep what they store, and why."""
        if self._named is not None:
            return {layer.name: "not named" for layer in self._layers if layer not in self._named}
        reasons = {layer.name: self._why_not(layer) for layer in self._layers}
        return {name: reason for name, reason in reasons.items() if reason}

    @property
    def kept(self) -> int:
        """Number of batches that are kept now."""
        return len(self._kept)

    def step(self, batch: Any, *, new_batch: bool = True) -> None:
        """Keeps a reference to the batch that was trained on; nothing is computed, copied or moved.

        Call it where the forward runs: in its autocast region, if it has one.

        Args:
            batch: what the loader yields, or what `forward` takes (tensor, tuple, list, dict, named tuple or data
                class of tensors). A tensor must not be written to afterwards; memory that is filled behind torch's back
                (NVIDIA DALI, a NumPy view) has to be copied, because that cannot be noticed.
            new_batch: False for a further micro-batch of the same optimiser step (gradient accumulation). The
                micro-batches are put together, because the statistics of two samples are noise.

        Raises:
            RuntimeError: in the `with`, or with `keep=0`.
            TypeError: if the batch is of the wrong type, or holds what can change without a trace: an array, an object,
                or a tensor made in inference mode.
        """
        if self._swapped:
            raise RuntimeError(
                "a training step inside `with serving()` would update statistics that are put back at its end; leave "
                "the `with` before training goes on"
            )
        if not self._keep:
            raise RuntimeError("keep=0 keeps no batch; give them at the read, `with serving(batches)`, or pass keep=8")
        own = batch if self._forward_fn is not None else split_batch(batch, self.model)
        self._kept.add(own, new_batch=new_batch)
        self._autocast = Autocast.now(device_of(self.model))
        self._see_resting()

    @contextlib.contextmanager
    def __call__(self, batches: Iterable[Any] | None = None) -> Iterator[None]:
        """Puts the serving statistics into the model for the length of a `with`, on all ranks.

        Args:
            batches: a list or DataLoader of batches, of about the size of those of training, to be used instead of
                those kept; its pass runs under the autocast that is on at the `with`.

        Raises:
            RuntimeError: if nothing was kept, a kept input was changed in place since, it is used inside itself, or, at
                the end, the statistics were changed in the `with`, as a training step does.
            ValueError: if a batch holds one value per channel, or the inputs of a layer NaN or infinity.
            NotVerifiableError: if another rank does not come within `timeout` seconds.
        """
        solution = self._solve(batches)
        self._swapped = True
        try:
            with swapped(solution):
                yield
        finally:
            self._swapped = False

    def write(self, batches: Iterable[Any] | None = None) -> Recalibration:
        """Writes the serving statistics for good, on all ranks; calling what it returns undoes that.

        A second pass shows before that the layers see what is stored, as after every recalibration.

        Args:
            batches: as for the `with`.

        Raises:
            Exception: as the `with`, and a ValueError if the second pass finds other statistics; the model is then as
                it was.
        """
        solution = self._solve(batches, twice=True)
        before = [current(new.layer) for new in solution.corrected]
        done = Recalibration(
            [old.layer.name for old in before], solution.passes, None, solution.note, solution.remaining, before
        )
        try:
            put(solution)
        except BaseException:
            done.undo()
            raise
        return done

    def _solve(self, batches: Iterable[Any] | None, *, twice: bool = False) -> Solution:
        """Works out the statistics, looks `twice` if asked to, and leaves the model as it was."""
        if self._swapped:
            raise RuntimeError(
                "the serving statistics are in the model already: ServingStatistics is used in its own `with`"
            )
        if self._ranks.size > 1 and isinstance(self._group, dist.ProcessGroup):
            meet(self._group, self._timeout, "using ServingStatistics is collective")
        with self._ranks.together():
            given = batches is not None
            if batches is None:
                if not self._keep:
                    raise RuntimeError("keep=0 keeps no batch; give them at the read, `with serving(batches)`")
                if not self._kept:
                    raise RuntimeError(
                        "no batch was kept: call step(x) in the training loop, or give batches: `with serving(batches)`"
                    )
                self._kept.require_unchanged()
                batches = self._kept
            self._see_resting()
            chosen = self._chosen()
            feed = Feed(self.model, batches, forward_fn=self._forward_fn, device=self._device, ranks=self._ranks)
        autocast = Autocast.now(device_of(self.model)) if given or self._autocast is None else self._autocast
        try:
            with preserved(self.model), undisturbed(self.model), autocast.region():
                self._start_alike(chosen)
                solution = solve_batch(feed, chosen)
                reached = {new.layer.name for new in solution.corrected}
                if self._named is not None and reached != {layer.name for layer in chosen}:
                    missed = [layer.name for layer in chosen if layer.name not in reached]
                    raise ValueError(f"{'; '.join(not_measured(missed, solution.own_code))}; nothing was written")
                return look_again(feed, solution, RENORMALISED) if twice else solution
        except BaseException as error:
            error.add_note("This was the pass of ServingStatistics; the model and the generators are as before it.")
            raise

    def _start_alike(self, chosen: list[Layer]) -> None:
        """Gives all ranks the statistics of rank 0: each keeps its own in training, and sums add up in one unit."""
        if self._ranks.size == 1:
            return
        own = [[buffer.cpu() for buffer in layer.statistics()] for layer in chosen]
        for layer, (mean, var) in zip(chosen, self._ranks.gather(own)[0], strict=True):
            Corrected(layer, mean, var).put()

    def _see_resting(self) -> None:
        """Sees which layers are frozen now; a model in eval mode does not say."""
        if self.model.training:
            self._resting = {layer.name for layer in self._layers if not layer.module.training}

    def _chosen(self) -> list[Layer]:
        if self._named is not None:
            return self._named
        chosen = [layer for layer in self._layers if not self._why_not(layer)]
        if not chosen:
            reasons = joined([f"{layer.label} {self._why_not(layer)}" for layer in self._layers])
            raise ArgumentError("layers", f"no BatchNorm layer is left to serve: {reasons}; name some in `layers`")
        return chosen

    def _why_not(self, layer: Layer) -> str:
        if not layer.tracked:
            return "stores no statistics"
        if layer.per_instance:
            return "is an InstanceNorm"
        if layer.fused:
            return f"is part of a fused {layer.fused}"
        resting = layer.frozen if self._resting is None else layer.fixed or layer.name in self._resting
        return "is frozen" if resting else ""


def _group_of(model: Any) -> Any:
    """The processes that the wrapper around a model shares its batches with, None if there is none."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group = getattr(model, "process_group", None)
    if isinstance(group, dist.ProcessGroup):
        return group
    # By name, because the import takes seconds.
    sharded = any(cls.__name__ == "FSDPModule" for cls in type(model).__mro__)
    return WORLD if sharded else None
