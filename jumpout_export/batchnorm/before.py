"""What became of a model's BatchNorms since an earlier one: after quantisation-aware training, averaging, merging.

A weight average, a merge of models or a conversion changes the weights, and may leave the BatchNorm statistics, eps,
momentum or the dropout rates those of another network. Each is named per layer, whatever the drift on the data is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn

from jumpout_export.batchnorm.measure.layers import Layer, batchnorm_layers, label
from jumpout_export.errors import ArgumentTypeError
from jumpout_export.model.randomness import same_bits
from jumpout_export.model.stochastic import StochasticLayer, stochastic_layers
from jumpout_export.model.wrappers import plain_names
from jumpout_export.text import some_of

# Names of layers in one sentence.
_MOST = 5


def changes_since(model: nn.Module, layers: Sequence[Layer], before: nn.Module) -> list[str]:
    """Returns a sentence for each way in which a model's BatchNorms are not what an earlier one's were meant to be.

    Args:
        model: as it is now; only looked at.
        layers: its BatchNorms.
        before: the model before training went on, or one of those that were averaged; layers belong together by their
            names, and those that were renamed (as fused ones are) in their order.

    Raises:
        ArgumentTypeError: if `before` is no nn.Module.
    """
    if not isinstance(before, nn.Module):
        raise ArgumentTypeError("before", f"before must be a torch.nn.Module, got {type(before).__name__}")
    pairs = _pairs(layers, batchnorm_layers(before))
    return [
        *_missing(layers, pairs, before),
        *(sentence for one, other in pairs for sentence in _settings(one, other)),
        *_rates(_stochastic(model), _stochastic(before)),
        *_not_averaged(model, before, pairs),
        *_negative(layers),
    ]


def _pairs(now: Sequence[Layer], before: Sequence[Layer]) -> list[tuple[Layer, Layer]]:
    by_name = {layer.name: layer for layer in before}
    pairs = [(layer, by_name.pop(layer.name)) for layer in now if layer.name in by_name]
    rest = [layer for layer in now if not any(layer is one for one, _ in pairs)]
    left = list(by_name.values())
    if [layer.channels for layer in rest] == [layer.channels for layer in left]:
        pairs += zip(rest, left, strict=True)
    return [(one, other) for one, other in pairs if one.channels == other.channels]


def _missing(layers: Sequence[Layer], pairs: list[tuple[Layer, Layer]], before: nn.Module) -> Iterator[str]:
    new = [layer.label for layer in layers if not any(layer is one for one, _ in pairs)]
    gone = [layer.label for layer in batchnorm_layers(before) if layer.name not in {other.name for _, other in pairs}]
    if new:
        yield f"The earlier model has no BatchNorm like {some_of(new, _MOST)}."
    if gone:
        yield f"The earlier model's {some_of(gone, _MOST)} have no BatchNorm of their size here."


def _settings(one: Layer, other: Layer) -> Iterator[str]:
    if one.eps != other.eps:
        yield (
            f"eps of BatchNorm {one.label} is {one.eps:g}, before it was {other.eps:g}: it divides by another number "
            "than the weights around it were trained with."
        )
    if one.momentum != other.momentum:
        yield (
            f"momentum of BatchNorm {one.label} is {one.momentum}, before it was {other.momentum}: its stored average "
            "is one over another number of batches."
        )


def _stochastic(model: nn.Module) -> dict[str, StochasticLayer]:
    names = plain_names(model)
    return {names[layer.path]: layer for layer in stochastic_layers(model)}


def _rates(now: Mapping[str, StochasticLayer], before: Mapping[str, StochasticLayer]) -> Iterator[str]:
    why = "the stored statistics are those of the noise of training"
    for path in [*now, *(path for path in before if path not in now)]:
        one, other = now.get(path), before.get(path)
        if one is None and other is not None:
            yield f"{label(path)} was {other.kind}({other.settings}) and is none now: {why}."
        elif one is not None and other is None:
            yield f"{label(path)} is {one.kind}({one.settings}), the earlier model has none there: {why}."
        elif one is not None and other is not None and (one.kind, one.settings) != (other.kind, other.settings):
            yield (f"{label(path)} is {one.kind}({one.settings}), before it was {other.kind}({other.settings}): {why}.")


def _not_averaged(model: nn.Module, before: nn.Module, pairs: list[tuple[Layer, Layer]]) -> Iterator[str]:
    """Statistics that stayed bit for bit while the weights did not: left out of an average, a merge or an update."""
    now, then = _weights(model), _weights(before)
    moved = [name for name in now if name in then and not _same(now[name], then[name])]
    if not moved:
        return
    stale = [one.label for one, other in pairs if one.tracked and other.tracked and _same_statistics(one, other)]
    if stale:
        yield (
            f"The weights changed ({some_of([f'`{name}`' for name in moved], 2)}), and the statistics of BatchNorm "
            f"{some_of(stale, _MOST)} are bit for bit those of the earlier model: they were not averaged or updated "
            "with the weights (EMA, SWA, federated averaging, merging); recalibrate them with "
            "recalibrate_batchnorm(model, batches)."
        )


def _weights(model: nn.Module) -> dict[str, Tensor]:
    names = plain_names(model)
    return {
        f"{names[path]}.{name}" if names[path] else name: tensor
        for path, module in model.named_modules()
        for name, tensor in module.named_parameters(recurse=False)
    }


def _same_statistics(one: Layer, other: Layer) -> bool:
    return all(_same(mine, its) for mine, its in zip(one.statistics(), other.statistics(), strict=True))


def _same(one: Tensor, other: Tensor) -> bool:
    return same_bits(one.detach().cpu(), other.detach().cpu())


def _negative(layers: Sequence[Layer]) -> Iterator[str]:
    for layer in layers:
        count = int((layer.statistics()[1] < 0).sum()) if layer.tracked else 0
        if count:
            yield (
                f"running_var of BatchNorm {layer.label} is negative in {count} of {layer.channels} channels, as sums "
                "of models with negative weights make it; recalibrate it with recalibrate_batchnorm(model, batches)."
            )
