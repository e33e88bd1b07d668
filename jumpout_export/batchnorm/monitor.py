"""Watches BatchNorm and jumpout while a model trains, without touching the training."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from jumpout_export.batchnorm.judge.verdicts import Judge, unusable
from jumpout_export.batchnorm.measure.collect import Collected, collect
from jumpout_export.batchnorm.measure.feed import Feed, ForwardFn, batch_count
from jumpout_export.batchnorm.measure.layers import batchnorm_layers
from jumpout_export.batchnorm.measure.states import SERVING, undisturbed
from jumpout_export.batchnorm.serving import ServingStatistics
from jumpout_export.errors import ArgumentError
from jumpout_export.model.wrappers import COMPILED, DISTRIBUTED, plain_names, unwrap
from jumpout_export.nn.modules import Jumpout
from jumpout_export.nn.sampled import Sampled
from jumpout_export.report import MonitorHistory

# The margins of `check_batchnorm`.
WARN, FAIL = 0.05, 0.15
_LEVEL = 0.05  # the intervals miss the truth with this probability


class ScalarWriter(Protocol):
    """What the monitor needs of a TensorBoard writer; `torch.utils.tensorboard.SummaryWriter` has it."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int, /) -> Any:
        """Records one value of one series."""


class Look(NamedTuple):
    """What one look of a `BatchNormMonitor` found; every dict has one value per layer, by module path.

    Attributes:
        step: training step, counted from 1.
        w: per BatchNorm layer, W of the stored statistics against what serving would see now.
        w_low: lower ends of its 95% intervals.
        w_high: upper ends.
        w_serving: the same with the serving statistics in use; empty without `serving`, NaN before its first step.
        w_serving_low: lower ends of its 95% intervals.
        w_serving_high: upper ends.
        active_fraction: per jumpout layer, q: mean over the steps since the look before.
        rate: per jumpout layer, the rate used p': mean over the same steps; per nn.Dropout layer its p.
        capped: per jumpout layer, the fraction of the same steps in which `rate_cap` bound.
    """

    step: int
    w: dict[str, float]
    w_low: dict[str, float]
    w_high: dict[str, float]
    w_serving: dict[str, float]
    w_serving_low: dict[str, float]
    w_serving_high: dict[str, float]
    active_fraction: dict[str, float]
    rate: dict[str, float]
    capped: dict[str, float]


class BatchNormMonitor:
    """Follows the drift of every BatchNorm layer, and what jumpout samples, in a training loop of your own.

    Call `step()` after every training step. Every `every`-th call is a look: the model runs on `batches` as it would
    be served, and each layer's stored statistics are compared with what the layer sees, as in `check_batchnorm`.
    Between the looks nothing is attached to the model: `step()` only keeps what each jumpout layer sampled last (of
    several calls in one step, the last), and nothing waits for the device.

    Training is left bitwise as it is without the monitor: parameters, gradients, buffers, flags, and the generators of
    torch, NumPy, Python and the DataLoader; also after an exception. A look costs about a forward pass over `samples`
    samples, and the memory of one batch without gradients.

    Of a DistributedDataParallel or compiled model the model inside is watched, uncompiled: a look starts no collective,
    so that one rank may watch while the others wait, and it compiles nothing. A layer whose W cannot be measured is NaN
    (infinite where the stored statistics are unusable), and a warning says why, once.

    Args:
        model: a model with BatchNorm layers, complete: layers that are put in later are not watched.
        batches: a list or DataLoader of held-out batches, not the loader that is being trained on.
        every: steps from one look to the next.
        samples: a look ends with the batch that reaches this many samples.
        forward_fn: `forward_fn(model, batch)` replaces the call; it gets the batch as the loader yields it.
        device: where batches go; None: where the model's first parameter is.
        training_batch_size: samples in a batch of training; None: that of `batches`, at least 32. It says how much
            noise the stored moving average carries, which is taken off W and widens the intervals.
        serving: serving statistics of the same model: each look measures W with them, too, and the plot shows both.
            Where they are collective, every rank needs a monitor.
        writer: gets every value of a look as `add_scalar(tag, value, step)`, for example TensorBoard's SummaryWriter.

    Raises:
        ValueError: if the model has no BatchNorm, `batches` is empty or a one-shot iterator, or one of the numbers is
            below 1.
        TypeError: if `batches` or `writer` is of the wrong type.

    Example:
        >>> with BatchNormMonitor(model, held_out, every=200) as monitor:
        ...     for x, y in loader:
        ...         train_step(x, y)
        ...         monitor.step()
        >>> monitor.plot("bn.svg")
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        *,
        every: int = 200,
        samples: int = 512,
        forward_fn: ForwardFn | None = None,
        device: torch.device | str | None = None,
        training_batch_size: int | None = None,
        serving: ServingStatistics | None = None,
        writer: ScalarWriter | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1 step, got {every}")
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        if training_batch_size is not None and training_batch_size < 1:
            raise ValueError(f"training_batch_size must be at least 1, got {training_batch_size}")
        if writer is not None and not hasattr(writer, "add_scalar"):
            raise TypeError(f"writer must have a method add_scalar(tag, value, step), got {type(writer).__name__}")
        # The forward of DistributedDataParallel may wait for the other processes. FullyShardedDataParallel stays,
        # because nothing else has the whole weights.
        model = unwrap(model, (COMPILED, DISTRIBUTED))
        if serving is not None and serving.model is not model:
            raise ArgumentError("serving", "serving must be the ServingStatistics of the model that is watched")
        self._layers = batchnorm_layers(model)
        self._options: dict[str, Any] = {"samples": samples, "forward_fn": forward_fn, "device": device}
        Feed(model, batches, **self._options)  # says now what is wrong with them, not at the first look
        if batch_count(batches) == 0:
            raise ValueError("batches is empty: there is nothing to look at; pass at least one held-out batch")
        self._model: nn.Module | None = model
        self._batches: Iterable[Any] = batches
        names = plain_names(model)
        modules = [(names[path], module) for path, module in model.named_modules()]
        self._jumpouts = {name: Sampled(module) for name, module in modules if isinstance(module, Jumpout)}
        self._dropouts = {name: module for name, module in modules if isinstance(module, _DropoutNd)}
        self._every = every
        self._judge = Judge(WARN, FAIL, training_batch_size)
        self._serving, self._writer = serving, writer
        self._steps = 0
        self._warned: set[tuple[str, str]] = set()
        norms = [layer.name for layer in self._layers]
        served = norms if serving is not None else []
        self._history = MonitorHistory(
            w={name: [] for name in norms},
            w_low={name: [] for name in norms},
            w_high={name: [] for name in norms},
            w_serving={name: [] for name in served},
            w_serving_low={name: [] for name in served},
            w_serving_high={name: [] for name in served},
            active_fraction={name: [] for name in self._jumpouts},
            rate={name: [] for name in (*self._jumpouts, *self._dropouts)},
            capped={name: [] for name in self._jumpouts},
        )

    @property
    def history(self) -> MonitorHistory:
        """All looks so far; it stays after `close()`."""
        return self._history

    def step(self) -> Look | None:
        """Counts one training step; returns the new look at every `every`-th call, else None.

        Raises:
            RuntimeError: if the monitor is closed.
            Exception: whatever the model or the batches raise in a look, with a note that says so.
        """
        self._open_model()
        self._steps += 1
        for sampled in self._jumpouts.values():
            sampled.take()
        return self.look() if self._steps % self._every == 0 else None

    def look(self) -> Look:
        """Looks now, whatever `every` says, for example at the end of training.

        Raises:
            RuntimeError: if the monitor is closed.
            Exception: whatever the model or the batches raise, with a note that says so.
        """
        model = self._open_model()
        try:
            with undisturbed(model):
                feed = Feed(model, self._batches, **self._options)
                drift, reasons = self._drift(collect(feed, self._layers, SERVING, "watching BatchNorm"))
                served = self._served(feed)
        except BaseException as error:
            error.add_note(
                f"This was the look of BatchNormMonitor at training step {self._steps}; the model and the generators "
                "are as they were before it."
            )
            raise
        look = self._look(drift, served)
        self._record(look)
        for name, reason in reasons.items():
            if (name, reason) not in self._warned:
                self._warned.add((name, reason))
                warnings.warn(f"training step {self._steps}: {reason}", stacklevel=3)  # the caller of step()
        return look

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the history as JSON, to be read with `MonitorHistory.model_validate_json`; returns the path."""
        target = Path(path)
        target.write_text(self._history.model_dump_json(indent=2) + "\n", encoding="utf-8")
        return target

    def plot(self, path: str | os.PathLike[str], *, warn: float = WARN, fail: float = FAIL) -> Path:
        """Draws the history to a file that ends in `.svg` or `.png`, with the margins `warn` and `fail`.

        Raises:
            ValueError: if the name ends in anything else.
            ImportError: if matplotlib is not installed.
        """
        from jumpout_export.render.plots.monitor import write_monitor_plot  # its package brings in rich

        return write_monitor_plot(self._history, path, warn=warn, fail=fail)

    def close(self) -> None:
        """Lets go of the model, the batches and the writer; the history stays. A second call does nothing."""
        self._model = self._writer = self._serving = None
        self._layers, self._batches, self._jumpouts, self._dropouts = [], (), {}, {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open_model(self) -> nn.Module:
        if self._model is None:
            raise RuntimeError("this BatchNormMonitor is closed and watches no model any more; make a new one")
        return self._model

    def _drift(self, seen: Collected) -> tuple[dict[str, tuple[float, float, float]], dict[str, str]]:
        """Returns W, its lower and its upper bound per layer, and the reason for each layer without a number."""
        drift, reasons = {}, {}
        for layer in self._layers:
            moments = seen.moments.get(layer.name)
            w = math.nan
            if not layer.tracked:
                reason = "stores no running statistics (track_running_stats=False)"
            elif unusable(layer):
                reason = "stores statistics that are not finite or give no positive variance"
                w = math.inf
            elif layer.name in seen.own_code:
                reason = "normalises by code that cannot be followed"
            elif moments is None:
                reason = "was not reached by the forward pass"
            elif not moments.finite:
                reason = "got NaN or infinity as input"
            else:
                score = self._judge.score(layer, moments, seen, _LEVEL)
                drift[layer.name] = score.w, score.low, score.high
                continue
            drift[layer.name] = w, w, w
            reasons[layer.name] = f"BatchNorm {layer.label} {reason}, so its W is recorded as {w}"
        return drift, reasons

    def _served(self, feed: Feed) -> dict[str, tuple[float, float, float]]:
        """Returns what `_drift` does, of the serving statistics; nothing where they are not watched."""
        if self._serving is None:
            return {}
        if not self._serving.kept:
            return {layer.name: (math.nan, math.nan, math.nan) for layer in self._layers}
        with self._serving():
            return self._drift(collect(feed, self._layers, SERVING, "watching the serving statistics"))[0]

    def _look(
        self, drift: dict[str, tuple[float, float, float]], served: dict[str, tuple[float, float, float]]
    ) -> Look:
        means = {name: sampled.means() for name, sampled in self._jumpouts.items()}
        return Look(
            step=self._steps,
            w={name: w for name, (w, _, _) in drift.items()},
            w_low={name: low for name, (_, low, _) in drift.items()},
            w_high={name: high for name, (_, _, high) in drift.items()},
            w_serving={name: w for name, (w, _, _) in served.items()},
            w_serving_low={name: low for name, (_, low, _) in served.items()},
            w_serving_high={name: high for name, (_, _, high) in served.items()},
            active_fraction={name: float(mean.q) for name, mean in means.items()},
            rate={name: float(mean.p_prime) for name, mean in means.items()}
            | {name: float(layer.p) for name, layer in self._dropouts.items()},
            capped={name: float(mean.capped) for name, mean in means.items()},
        )

    def _record(self, look: Look) -> None:
        self._history.steps.append(look.step)
        for field in _TAGS:
            for name, value in getattr(look, field).items():
                getattr(self._history, field)[name].append(value)
        if self._writer is not None:
            for field, tag in _TAGS.items():
                for name, value in getattr(look, field).items():
                    self._writer.add_scalar(f"{tag}/{name}", value, look.step)


# Field of a look -> the part of TensorBoard's tag before the layer's name.
_TAGS = {
    "w": "batchnorm/W",
    "w_low": "batchnorm/W_low",
    "w_high": "batchnorm/W_high",
    "w_serving": "batchnorm/W_serving",
    "w_serving_low": "batchnorm/W_serving_low",
    "w_serving_high": "batchnorm/W_serving_high",
    "active_fraction": "jumpout/active_fraction",
    "rate": "jumpout/rate",
    "capped": "jumpout/capped",
}
